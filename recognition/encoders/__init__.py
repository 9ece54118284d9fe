"""Encoders from any source (a run, released weights, ONNX), what they expect of images, and their export."""
