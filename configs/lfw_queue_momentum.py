"""The row of configs/vgg2_r34_queue_momentum (table II, momentum) on the real faces of configs/lfw_qg.

    python train.py configs/lfw_queue_momentum

Accuracy (AUC) in %, mean of seeds 1 to 3: HQ 84.9 (91.9), mixed 78.0 (87.2), LQ 76.5 (85.0).
With momentum_views=both: HQ 84.6 (92.9), mixed 82.2 (90.6), LQ 79.5 (89.0).
"""

from easydict import EasyDict as edict

from configs.lfw_qg import config as lfw_qg
from configs.vgg2_r34_queue_momentum import row

config = edict(lfw_qg, **row)
