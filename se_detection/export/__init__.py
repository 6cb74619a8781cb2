"""Detectors as files: TorchScript, ONNX and torch.export, each compared with its original."""
