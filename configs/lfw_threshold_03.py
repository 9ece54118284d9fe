"""Table III, b = 0.3.

    python train.py configs/lfw_threshold_03

On the data of configs/lfw_qg; what came out is in docs/EXPERIMENTS.md.
"""

from easydict import EasyDict as edict

from configs.lfw_qg import config as lfw_qg

config = edict(
    lfw_qg,
    quality_threshold=0.3,
)
