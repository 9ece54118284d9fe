"""The row of configs/vgg2_r34_d_both (a control for table I, row D) on the real faces of configs/lfw_qg.

    python train.py configs/lfw_d_both

Accuracy (AUC) in %, seed 1: HQ 86.5 (93.6), mixed 83.7 (91.2), LQ 80.2 (89.2).
"""

from easydict import EasyDict as edict

from configs.lfw_qg import config as lfw_qg
from configs.vgg2_r34_d_both import row

config = edict(lfw_qg, **row)
