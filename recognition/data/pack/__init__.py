"""Packing tools: `python -m recognition.data.pack COMMAND …` makes, checks and unpacks packed data sets.

A subcommand is one module in `commands/` with `HELP`, `add_arguments(parser)` and `run(arguments)`.
Its output appears under its final name as a whole or not at all (`utils/files.py`), several processes do the
work (`recognition/data/parallel.py`), and the size of an image is checked before it is decoded (`utils/images/`).
"""
