"""A training of a few seconds for the end-to-end tests: the smallest encoder on the demo set of tests/conftest.py."""

from easydict import EasyDict as edict

from configs.base import config as base

config = edict(
    base,
    network="tiny",
    embedding_size=32,
    global_batch_size=12,
    num_epoch=2,
    lr=0.05,
    schedule="cosine",
    warmup_epoch=0.25,
    quality_std=1.0,
    quality_mean=5.0,
    queue_size=40,
    frequent=1,
    precision="fp32",
    num_workers=1,
    max_grad_norm=5.0,
    seed=3,
)
