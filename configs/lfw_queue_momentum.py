"""Table II, queue "Momentum": MoCo's. A momentum encoder (m = 0.999) gives the positive keys and fills the queue.

    python train.py configs/lfw_queue_momentum

On the data of configs/lfw_qg; what came out is in docs/EXPERIMENTS.md.
As with the other queues both views are enqueued, so that the rows differ in the queue alone.
"""

from easydict import EasyDict as edict

from configs.lfw_qg import config as lfw_qg

config = edict(
    lfw_qg,
    queue="momentum",
)
