"""Benchmarks: embedding of images by a function that the caller passes in, and metrics of the features."""
