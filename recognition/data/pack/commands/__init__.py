"""The subcommands of `python -m recognition.data.pack`, one module each."""
