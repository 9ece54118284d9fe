"""Table II, queue "No": augmentation and partition without the contrastive loss; both views are learned, where they are of high
quality.

    python train.py configs/lfw_queue_none

On the data of configs/lfw_qg; what came out is in docs/EXPERIMENTS.md.
"""

from easydict import EasyDict as edict

from configs.lfw_qg import config as lfw_qg

config = edict(
    lfw_qg,
    queue="none",
)
