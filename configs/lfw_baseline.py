"""Plain AdaFace on the data of configs/lfw_qg, for as many encoder passes: one view (flip only) of each image, twice the epochs.

    torchrun --nproc_per_node=2 train.py configs/lfw_baseline
"""

from easydict import EasyDict as edict

from configs.lfw_qg import config as lfw_qg

config = edict(
    lfw_qg,
    views=1,
    augmentation="none",
    quality_threshold=None,
    queue="none",
    num_epoch=20,
    warmup_epoch=2.0,
)
