"""QGFace on 430 real people (3,831 LFW photographs, `../shared/faces/lfw_train`): minutes on two CPU cores.

    python train.py configs/lfw_qg                           # one process
    torchrun --nproc_per_node=2 train.py configs/lfw_qg      # the same batches, divided

Figures to expect on unseen people are in docs/EXPERIMENTS.md. What suits long runs in the paper is other here: margin and scale
(of both losses) are gentler, and the moving quality statistics start where a run of 790 steps has them (from 20 and 100, sigma
would still be far from the norms' own spread at the end).
"""

from easydict import EasyDict as edict

from configs.base import config as base

config = edict(
    base,
    rec="../shared/faces/lfw_train",
    val_dir="../shared/faces/val",
    val_targets=("lfw_hq", "lfw_mixed", "lfw_lq"),
    network="tiny",
    global_batch_size=48,
    num_epoch=10,
    lr=0.1,
    schedule="cosine",
    warmup_epoch=1.0,
    margin_m=0.3,
    scale=32.0,
    contrastive_scale=32.0,
    quality_mean=22.0,
    quality_std=5.0,
    diagnose_every=50,
)
