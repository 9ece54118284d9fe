"""Benchmarks: metrics over features, and the embedding of images by a function that is handed in; knows no model."""
