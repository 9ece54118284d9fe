"""The row of configs/vgg2_r34_d (table I, row D) on the real faces of configs/lfw_qg.

    python train.py configs/lfw_d

Accuracy (AUC) in %, mean of seeds 1 to 3: HQ 83.6 (93.2), mixed 81.5 (91.2), LQ 80.9 (89.8).
"""

from easydict import EasyDict as edict

from configs.lfw_qg import config as lfw_qg
from configs.small_qg import one_view
from configs.vgg2_r34_d import row

config = edict(lfw_qg, **row, **one_view)
