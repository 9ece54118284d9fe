"""Packing tools: `python -m recognition.data.pack COMMAND …` makes, checks and takes apart packed data sets.

A subcommand is one module with `HELP`, `add_arguments(parser)` and `run(arguments)`, and one line in `__main__.COMMANDS`.
Whatever they write appears under its final name whole or not at all (`output.py`), is made by several processes
(`parallel.py`), and comes from images whose size was checked before they were decoded (`utils/images.py`).
"""
