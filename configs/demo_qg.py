"""QGFace on procedural faces (400 identities that nobody is): what `./run.sh` trains, minutes on two CPU cores.

./run.sh                                                 # makes the faces, then runs this
./run.sh train configs/demo_qg                           # this alone
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
    margin_m=0.3,  # with 300 steps, a gentler margin and scales learn more than the paper's 0.4 and 64
    scale=32.0,
    contrastive_scale=32.0,
    quality_mean=22.0,
    quality_std=5.0,
    diagnose_every=50,
    verbose=150,  # steps: once on the way, and at the end
)
