"""Table I, row C: the method (partition, contrastive loss, proxy-updated queue) with AdaFace's augmentation.

    python train.py configs/lfw_c

On the data of configs/lfw_qg; what came out is in docs/EXPERIMENTS.md.
A contrast needs two views: the augmented one and the original, which rows A and B do not have.
"""

from easydict import EasyDict as edict

from configs.lfw_qg import config as lfw_qg

config = edict(
    lfw_qg,
    augmentation="adaface",
)
