"""Table I, row A: plain AdaFace with AdaFace's augmentation (crop, rescaling, colour, each with probability 0.2); one view.

    python train.py configs/lfw_a

On the data of configs/lfw_qg; what came out is in docs/EXPERIMENTS.md.
One view, and so twice the images a step and the epochs: as many encoder passes and as many steps as with two views.
"""

from easydict import EasyDict as edict

from configs.lfw_qg import config as lfw_qg

config = edict(
    lfw_qg,
    views=1,
    augmentation="adaface",
    quality_threshold=None,
    queue="none",
    global_batch_size=96,
    num_epoch=20,
    warmup_epoch=2.0,
)
