"""The row of configs/vgg2_r34_queue_batch (table II, batch) on the real faces of configs/lfw_qg.

    python train.py configs/lfw_queue_batch

Accuracy (AUC) in %, mean of seeds 1 to 3: HQ 84.0 (93.1), mixed 81.5 (90.7), LQ 79.2 (89.0).
"""

from easydict import EasyDict as edict

from configs.lfw_qg import config as lfw_qg
from configs.vgg2_r34_queue_batch import row

config = edict(lfw_qg, **row)
