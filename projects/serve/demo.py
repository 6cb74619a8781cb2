"""The demo: a Gradio page for one or two detectors, and its server."""

import html
import os
import re
import socket
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from tempfile import TemporaryDirectory
from types import FrameType
from typing import Any

import gradio as gr
from gradio.utils import get_upload_folder
from PIL import Image
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware

from se_detection.data.coco_format import Entry
from se_detection.engine.signals import handling
from se_detection.errors import UserError, counted, user_message
from se_detection.inference.image_array import image_array

from .served_detector import ServedDetector

MAX_FILE_SIZE = "32 MB"
MAX_WAITING = 8
# Seconds between deletions of old files, and their age.
DELETE_CACHE = (600, 3600)
LOOPBACK = ("127.0.0.1", "localhost")
COLUMNS = ["class", "score", "left", "top", "right", "bottom"]

# The path of an uploaded image, and for each detector its detections and the seconds that it took.
Found = tuple[str, list[tuple[list[Entry], float]]]


def build_demo(detectors: Sequence[ServedDetector]) -> gr.Blocks:
    """The page: an upload, a slider for the score, and what each detector finds."""
    # Without the share button, which sends the image to Hugging Face.
    shown_image = partial(
        gr.Image, show_label=False, interactive=False, format="jpeg", buttons=["fullscreen", "download"]
    )
    title = " and ".join(str(detector.run) for detector in detectors)
    with gr.Blocks(title=title, analytics_enabled=False, delete_cache=DELETE_CACHE) as demo:
        gr.Markdown(
            "# Try a detector\nImages are sent to the program that serves this page, and deleted after an hour."
        )
        found = gr.State()
        with gr.Row():
            upload = gr.File(label=f"Image (at most {MAX_FILE_SIZE})", file_types=["image"], height=120)
            score = gr.Slider(0, 1, 0.5, step=0.01, label="Score at least")
        shown, maps = [], []
        with gr.Row():
            for detector in detectors:
                with gr.Column(min_width=320):
                    shown += [gr.Textbox(label=str(detector.run)), shown_image()]
                    with gr.Accordion("As a table", open=False):
                        shown.append(gr.Dataframe(headers=COLUMNS, interactive=False))
        for detector in (detector for detector in detectors if detector.gates):
            with gr.Accordion(f"Features that the gates of {detector.run} make stronger (red) or weaker (blue)"):
                button = gr.Button("Show")
                maps.append(shown_image())
            _connect(button.click, partial(show_gates, detector), [upload], [maps[-1]])
        outputs = [found, *shown, *maps]
        _connect(upload.upload, partial(show_image, detectors, len(maps)), [upload, score], outputs)
        _connect(score.change, partial(show_found, detectors), [found, score], shown)
        upload.clear(lambda: [None] * len(outputs), None, outputs)
    upload.async_move_resource_to_block_cache = _only_uploaded
    return demo


def _connect(event: Callable[..., Any], handler: Callable[..., Any], inputs: list[Any], outputs: list[Any]) -> None:
    """Connects a handler; errors that the user can fix become a line on the page."""

    def handle(*values: Any) -> Any:
        try:
            return handler(*values)
        except Exception as error:
            message = user_message(error)
            if message is None:
                raise  # the page only says that there was an error, the terminal shows the traceback
            # Visitors know an image by its name alone. Gradio shows HTML.
            line = html.escape(re.sub(rf"{re.escape(get_upload_folder())}/\w+/", "", message))
            raise gr.Error(line, duration=None, print_exception=False) from error

    # One at a time, because a model keeps state of its current image.
    event(handle, inputs, outputs, concurrency_id="detectors", concurrency_limit=1, trigger_mode="always_last")


async def _only_uploaded(path: str) -> str:
    """Replaces Gradio's function, which downloads any web address that a request names as its image."""
    if not os.path.isfile(path):
        raise gr.Error("this is not an uploaded image", print_exception=False)
    return path


def show_image(detectors: Sequence[ServedDetector], maps: int, file: str, score: float) -> list[Any]:
    """Runs the detectors on an uploaded image. Returns its `Found`, what :func:`show_found` returns, and no maps."""
    image = image_array(file, "BGR", "BGR")
    found = file, [detector.detect(image) for detector in detectors]
    return [found, *show_found(detectors, found, score), *[None] * maps]


def show_found(detectors: Sequence[ServedDetector], found: Found | None, score: float) -> Any:
    """Draws the detections with a minimum score: a line, the image, and the rows of a table for each detector."""
    if found is None:
        return gr.skip()
    file, results = found
    image = image_array(file, "BGR", "BGR")
    shown: list[Any] = []
    for detector, (entries, seconds) in zip(detectors, results, strict=True):
        kept = [entry for entry in entries if entry["score"] >= score]
        rows = []
        for entry in kept:
            x, y, width, height = entry["bbox"]
            numbers = (entry["score"], x, y, x + width, y + height)
            rows.append([detector.names[entry["category_id"]], *(round(number, 2) for number in numbers)])
        counts = "".join(f", {name} {count}" for name, count in sorted(Counter(row[0] for row in rows).items()))
        found_in = f"{1000 * seconds:.0f} ms, {counted(len(rows), 'detection')}{counts}"
        shown += [found_in, detector.draw(image, kept), rows]
    return shown


def show_gates(detector: ServedDetector, file: str | None) -> Image.Image | None:
    """The map of a detector's gates for an uploaded image."""
    return detector.gate_map(image_array(file, "BGR", "BGR")) if file else None


def serve(load: Callable[[], Sequence[ServedDetector]], host: str, port: int) -> None:
    """Serves the demo until SIGINT or SIGTERM, and exits with 128 + the signal's number.

    Args:
        load: loads the detectors, after the address is checked.

    Raises:
        UserError: the port is in use, or the host is not an address of this machine.
    """
    try:
        with socket.create_server((host, port)) as listener:
            port = listener.getsockname()[1]
    except (OSError, OverflowError, UnicodeError) as error:
        text = f"--host {host} --port {port}: {error}; give another (0 selects a free port)"
        raise UserError("serve.address", text) from error
    files = TemporaryDirectory(prefix="se-detection-")
    os.environ["GRADIO_TEMP_DIR"] = files.name

    def stop(number: int, frame: FrameType | None) -> None:
        files.cleanup()
        # A normal exit of Python aborts if a thread has used torch.
        os._exit(128 + number)

    with files, handling(stop):
        demo = build_demo(load())
        launch(demo, host, port)
        if host not in LOOPBACK:
            warning = f"everyone who can reach port {port} of this machine can send images; there is no password"
            print(f"warning: --host {host}: {warning} and no encryption", file=sys.stderr)
        print(f"Open {demo.local_url} in a browser; Ctrl-C stops the server.", flush=True)
        demo.block_thread()


def launch(demo: gr.Blocks, host: str, port: int) -> None:
    """Starts the server of the demo in a thread."""
    # Another site's name could resolve to this machine (DNS rebinding).
    names = LOOPBACK if host in LOOPBACK else ["*"]
    demo.queue(max_size=MAX_WAITING, api_open=False).launch(
        server_name=host,
        server_port=port,
        share=False,
        quiet=True,
        prevent_thread_lock=True,
        max_file_size=MAX_FILE_SIZE,
        app_kwargs={"middleware": [Middleware(TrustedHostMiddleware, allowed_hosts=names)]},
        # Gradio's own themes load their fonts from Google.
        theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
        footer_links=[],
        run_history=False,
        ssr_mode=False,
    )
