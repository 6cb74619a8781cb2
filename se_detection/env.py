"""For `DETECTRON2_ENV_MODULE=se_detection.env`: makes detectron2's own tools know this plugin."""

# detectron2 is half imported when it imports this module: name nothing of se_detection here.
import se_detection  # noqa: F401


def setup_environment() -> None:
    """What detectron2 calls; importing the package has registered everything already."""
