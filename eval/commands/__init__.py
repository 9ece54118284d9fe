"""The subcommands of `python -m eval`, one module per command."""
