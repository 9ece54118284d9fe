"""The arithmetic of the benchmarks (IJB-B/C, TinyFace, SCface, identification), without models or output."""
