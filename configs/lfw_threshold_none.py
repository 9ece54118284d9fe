"""The row of configs/vgg2_r34_threshold_none (table III, no threshold) on the real faces of configs/lfw_qg.

    python train.py configs/lfw_threshold_none

Accuracy (AUC) in %, mean of seeds 1 to 3: HQ 81.5 (89.5), mixed 79.2 (87.6), LQ 77.8 (85.9).
"""

from easydict import EasyDict as edict

from configs.lfw_qg import config as lfw_qg
from configs.vgg2_r34_threshold_none import row

config = edict(lfw_qg, **row)
