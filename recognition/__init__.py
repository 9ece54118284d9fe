"""The training pipeline: data, step, optimiser, trainer, checkpoints."""

__version__ = "1.0.0"
"""docs/DEPLOYING.md states what changes it. CITATION.cff and CHANGELOG.md have the same."""
