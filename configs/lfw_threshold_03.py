"""The row of configs/vgg2_r34_threshold_03 (table III, b = 0.3) on the real faces of configs/lfw_qg.

    python train.py configs/lfw_threshold_03

Accuracy (AUC) in %, mean of seeds 1 to 3: HQ 82.2 (91.8), mixed 80.8 (89.4), LQ 79.9 (87.9).
"""

from easydict import EasyDict as edict

from configs.lfw_qg import config as lfw_qg
from configs.vgg2_r34_threshold_03 import row

config = edict(lfw_qg, **row)
