"""Purifiers exported as graphs: .pt2, ONNX and TorchScript."""
