"""The row of configs/vgg2_r34_c (table I, row C) on the real faces of configs/lfw_qg.

    python train.py configs/lfw_c

Accuracy (AUC) in %, mean of seeds 1 to 3: HQ 83.9 (91.8), mixed 77.4 (86.7), LQ 76.4 (84.3).
"""

from easydict import EasyDict as edict

from configs.lfw_qg import config as lfw_qg
from configs.vgg2_r34_c import row

config = edict(lfw_qg, **row)
