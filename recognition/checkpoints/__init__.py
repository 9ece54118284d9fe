"""The complete state of a run on disk: capture, write, verify, load, and resume on any number of ranks."""
