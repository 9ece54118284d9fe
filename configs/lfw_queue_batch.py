"""Table II, queue "Batch": negatives from the step's own features only.

    python train.py configs/lfw_queue_batch

On the data of configs/lfw_qg; what came out is in docs/EXPERIMENTS.md.
"""

from easydict import EasyDict as edict

from configs.lfw_qg import config as lfw_qg

config = edict(
    lfw_qg,
    queue="batch",
)
