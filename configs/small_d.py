"""Small data (hundreds of people, thousands of images): plain AdaFace with the paper's low-quality augmentation.

    python train.py configs/small_d rec=/data/mine

In runs of this size nothing was gained by partition and contrast beyond their augmentation: docs/EXPERIMENTS.md has the figures
and the reasons. One view, and so twice the images a step and the epochs of configs/small_qg: as many encoder passes and steps.
"""

from easydict import EasyDict as edict

from configs.small_qg import config as small_qg

config = edict(
    small_qg,
    views=1,
    quality_threshold=None,
    queue="none",
    global_batch_size=96,
    num_epoch=20,
    warmup_epoch=2.0,
)
