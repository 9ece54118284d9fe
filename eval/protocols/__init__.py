"""The arithmetic of the benchmarks (IJB-B/C, TinyFace, SCface, identification); no models, no output."""
