"""Table I, row B: row A and the quality partition. Low-quality features are dropped.

    python train.py configs/lfw_b

On the data of configs/lfw_qg; what came out is in docs/EXPERIMENTS.md.
One view a step, and so twice the epochs: as many encoder passes as with two views.
"""

from easydict import EasyDict as edict

from configs.lfw_qg import config as lfw_qg

config = edict(
    lfw_qg,
    views=1,
    augmentation="adaface",
    queue="none",
    num_epoch=20,
    warmup_epoch=2.0,
)
