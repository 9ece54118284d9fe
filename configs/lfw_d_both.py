"""A control beside table I, row D: the paper's augmentation with plain AdaFace, on both views of each image.

    python train.py configs/lfw_d_both

On the data of configs/lfw_qg; what came out is in docs/EXPERIMENTS.md.
It learns from what the method learns from, for as many encoder passes a step; what is missing is partition and contrast.
"""

from easydict import EasyDict as edict

from configs.lfw_qg import config as lfw_qg

config = edict(
    lfw_qg,
    quality_threshold=None,
    queue="none",
)
