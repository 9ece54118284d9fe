"""QGFace for small data sets: hundreds of people, thousands of images.

    python train.py configs/small_qg rec=/data/mine
    torchrun --nproc_per_node=2 train.py configs/small_qg rec=/data/mine val_targets="('mine',)"      # /data/mine/mine.bin

Hardware: CPU cores; about 8 minutes for 4,000 images on one. Figures to expect: docs/EXPERIMENTS.md, which also justifies what
differs from the paper (configs/vgg2_r34_qg): small batches and so more steps; a gentler margin and scales; quality statistics
that start near the norms of short runs; and a tenth of the weight of the contrastive loss, which has no lower bound and
outweighs the labels when many pairs are contrasted. Half of the augmented views take the colours of other images: with unknown
cameras, nothing else helps as much.
"""

from easydict import EasyDict as edict

from configs.base import config as base

config = edict(
    base,
    network="tiny",
    global_batch_size=48,
    num_epoch=10,
    lr=0.1,
    schedule="cosine",
    warmup_epoch=1.0,
    margin_m=0.3,
    scale=32.0,
    contrastive_scale=32.0,
    contrastive_weight=0.1,
    quality_mean=22.0,
    quality_std=5.0,
    colour_transfer=0.5,
)

# For views=1: twice the images per step and twice the epochs make as many steps and encoder passes as above.
one_view = dict(global_batch_size=96, num_epoch=20, warmup_epoch=2.0)
