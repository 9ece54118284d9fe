"""Small data (hundreds of people, thousands of images): the method, with what suits short runs.

    python train.py configs/small_qg rec=/data/mine
    torchrun --nproc_per_node=2 train.py configs/small_qg rec=/data/mine val_targets="('mine',)"      # /data/mine/mine.bin

What differs from the paper, by docs/EXPERIMENTS.md: small batches, for more steps; gentler margin and scales; quality statistics
that start where short runs have them; the positive in the contrastive loss's denominator, without which that loss has no bound
and outweighs the labels as soon as many pairs are contrasted; and a tenth of its weight. `configs/vgg2_r34_qg` keeps the paper's
values.
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
    contrastive_denominator="infonce",
    contrastive_weight=0.1,
    quality_mean=22.0,
    quality_std=5.0,
)
