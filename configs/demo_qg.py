"""QGFace on drawn faces of 400 people who do not exist.

    ./run.sh                                                 # the demo: draws the faces, trains baseline and QGFace
    ./run.sh train configs/demo_qg                           # this run only

Hardware: two CPU cores; 4 minutes. Accuracy (AUC) in %: demo_hq 87.8 (95.3), demo_mixed 84.0 (92.8), demo_lq 81.9 (91.2).
"""

from easydict import EasyDict as edict

from configs.base import config as base

config = edict(
    base,
    rec="data/demo",
    val_targets=("demo_hq", "demo_mixed", "demo_lq"),
    network="tiny",
    global_batch_size=96,
    num_epoch=3,
    lr=0.1,
    schedule="cosine",
    warmup_epoch=0.5,
    margin_m=0.3,  # in 300 steps a gentler margin and scales learn more than the paper's 0.4 and 64
    scale=32.0,
    contrastive_scale=32.0,
    quality_mean=22.0,
    quality_std=5.0,
    diagnose_every=50,
    verbose=1000,  # verify at the end only
)
