"""Prints the peak memory, in bytes, of a process that only detects objects in one image: `FILE IMAGE`.

With onnxruntime or OpenVINO, the process imports no torch.
"""

import json
import sys
from pathlib import Path
from typing import Any


def main(file: Path, image: Path) -> None:
    """Runs a detector (`.onnx`, `.xml`, or a module saved by torch) on an image, an array that numpy saved."""
    import numpy as np

    pixels = np.load(image)
    run: Any
    if file.suffix == ".onnx":
        import onnxruntime

        run = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
        run.run(None, {"image": pixels})
    elif file.suffix == ".xml":
        import openvino

        core = openvino.Core()
        model = core.read_model(file)
        precision = json.loads(model.get_rt_info(["framework", "se_detection.json"]).astype(str))["precision"]
        hint = {"INFERENCE_PRECISION_HINT": "bf16" if precision == "bfloat16" else "f32"}
        core.compile_model(model, "CPU", hint)({"image": pixels})
    else:
        import torch

        from se_detection.export.graph import find_instances

        with torch.no_grad():
            find_instances(torch.load(file, weights_only=False), torch.from_numpy(pixels))
    # getrusage also counts the process that started this one.
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines())
    print(1024 * int(status["VmHWM"].split()[0]))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
