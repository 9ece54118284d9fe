"""Encoders: build, load from any source (a run, released weights, ONNX), embed images, export; the model card."""
