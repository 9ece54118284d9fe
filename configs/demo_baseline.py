"""AdaFace on the faces of configs/demo_qg, for the same number of epochs: the baseline of the demo.

    ./run.sh                                                 # the demo: draws the faces, trains baseline and QGFace
    ./run.sh train configs/demo_baseline                     # this run only

One view of each image (random flip only), so a step costs half of one of QGFace. For as many encoder passes, add num_epoch=6
warmup_epoch=1. Hardware: two CPU cores; 3 minutes. Accuracy (AUC) in %: demo_hq 89.3 (95.6), demo_mixed 83.4 (91.1), demo_lq
80.4 (89.1).
"""

from easydict import EasyDict as edict

from configs.demo_qg import config as demo_qg
from configs.vgg2_r34_baseline import row

config = edict(demo_qg, **row)
