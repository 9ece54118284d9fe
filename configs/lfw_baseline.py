"""The row of configs/vgg2_r34_baseline (table I, baseline) on the real faces of configs/lfw_qg.

    python train.py configs/lfw_baseline

Accuracy (AUC) in %, mean of seeds 1 to 3: HQ 85.4 (93.1), mixed 76.7 (84.6), LQ 74.5 (81.9).
"""

from easydict import EasyDict as edict

from configs.lfw_qg import config as lfw_qg
from configs.small_qg import one_view
from configs.vgg2_r34_baseline import row

config = edict(lfw_qg, **row, **one_view)
