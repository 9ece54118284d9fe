"""The row of configs/vgg2_r34_queue_none (table II, no queue) on the real faces of configs/lfw_qg.

    python train.py configs/lfw_queue_none

Accuracy (AUC) in %, mean of seeds 1 to 3: HQ 84.7 (93.0), mixed 82.2 (90.7), LQ 79.9 (89.0).
"""

from easydict import EasyDict as edict

from configs.lfw_qg import config as lfw_qg
from configs.vgg2_r34_queue_none import row

config = edict(lfw_qg, **row)
