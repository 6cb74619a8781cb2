"""Exports detectors to TorchScript, ONNX and torch.export, and compares each export with the original."""
