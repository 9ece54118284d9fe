"""The row of configs/vgg2_r34_a (table I, row A) on the real faces of configs/lfw_qg.

    python train.py configs/lfw_a

Accuracy (AUC) in %, mean of seeds 1 to 3: HQ 85.1 (92.7), mixed 77.4 (85.4), LQ 75.7 (82.9).
"""

from easydict import EasyDict as edict

from configs.lfw_qg import config as lfw_qg
from configs.small_qg import one_view
from configs.vgg2_r34_a import row

config = edict(lfw_qg, **row, **one_view)
