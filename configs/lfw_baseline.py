"""Table I, "Baseline": plain AdaFace; one view, flipped at random only.

    python train.py configs/lfw_baseline

On the data of configs/lfw_qg; what came out is in docs/EXPERIMENTS.md.
One view, and so twice the images a step and the epochs: as many encoder passes and as many steps as with two views.
"""

from easydict import EasyDict as edict

from configs.lfw_qg import config as lfw_qg

config = edict(
    lfw_qg,
    views=1,
    augmentation="none",
    quality_threshold=None,
    queue="none",
    global_batch_size=96,
    num_epoch=20,
    warmup_epoch=2.0,
)
