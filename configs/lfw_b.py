"""The row of configs/vgg2_r34_b (table I, row B) on the real faces of configs/lfw_qg.

    python train.py configs/lfw_b

Accuracy (AUC) in %, mean of seeds 1 to 3: HQ 86.2 (92.9), mixed 77.3 (85.2), LQ 75.2 (82.9).
"""

from easydict import EasyDict as edict

from configs.lfw_qg import config as lfw_qg
from configs.small_qg import one_view
from configs.vgg2_r34_b import row

config = edict(lfw_qg, **row, **one_view)
