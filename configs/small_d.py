"""AdaFace with the paper's low-quality augmentation, for small data sets: hundreds of people, thousands of images.

    python train.py configs/small_d rec=/data/mine

Half of the images also take the colours of others, which the paper's augmentation does not have.

In runs of this size it is as good as configs/small_qg and simpler: partition and contrast added nothing to the augmentation
(docs/EXPERIMENTS.md has the figures and the reasons). Hardware and time are those of configs/small_qg.
"""

from easydict import EasyDict as edict

from configs.small_qg import config as small_qg
from configs.small_qg import one_view
from configs.vgg2_r34_d import row

config = edict(small_qg, **row, **one_view)
