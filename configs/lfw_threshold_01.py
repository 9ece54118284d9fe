"""The row of configs/vgg2_r34_threshold_01 (table III, b = 0.1) on the real faces of configs/lfw_qg.

    python train.py configs/lfw_threshold_01

Accuracy (AUC) in %, mean of seeds 1 to 3: HQ 84.2 (93.0), mixed 82.8 (90.6), LQ 79.3 (89.0).
"""

from easydict import EasyDict as edict

from configs.lfw_qg import config as lfw_qg
from configs.vgg2_r34_threshold_01 import row

config = edict(lfw_qg, **row)
