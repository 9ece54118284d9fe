"""The training pipeline: data, step, optimiser, trainer, checkpoints."""
