"""Registers the plugin in detectron2's own tools: `DETECTRON2_ENV_MODULE=se_detection.env`."""

# detectron2 imports this module during its own import, so nothing can be imported from se_detection here.
import se_detection  # noqa: F401


def setup_environment() -> None:
    """detectron2 calls this function; the import above has already registered everything."""
