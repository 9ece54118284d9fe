"""What the demo compares with: plain AdaFace on the faces of configs/demo_qg, for as many encoder passes.

One view (flip only) of each image a step, and so twice the epochs.
"""

from easydict import EasyDict as edict

from configs.demo_qg import config as demo_qg

config = edict(
    demo_qg,
    views=1,
    augmentation="none",
    quality_threshold=None,
    queue="none",
    num_epoch=2 * demo_qg.num_epoch,
    warmup_epoch=2 * demo_qg.warmup_epoch,
)
