"""Table I, row D: plain AdaFace with the paper's augmentation.

    python train.py configs/lfw_d

On the data of configs/lfw_qg; what came out is in docs/EXPERIMENTS.md.
One view is learned, the augmented; `lfw_d_both` learns both, as E does.
One view a step, and so twice the epochs: as many encoder passes as with two views.
"""

from easydict import EasyDict as edict

from configs.lfw_qg import config as lfw_qg

config = edict(
    lfw_qg,
    views=1,
    quality_threshold=None,
    queue="none",
    num_epoch=20,
    warmup_epoch=2.0,
)
