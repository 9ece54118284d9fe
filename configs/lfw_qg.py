"""QGFace on 430 real people: 3,831 LFW photographs in ../shared/faces, which are not part of this repository.

    python train.py configs/lfw_qg                           # one process
    torchrun --nproc_per_node=2 train.py configs/lfw_qg      # the same batches, split between two processes

rec= and val_dir= select other data (docs/DATA.md shows how to make such sets). Hardware: one CPU core; about 8 minutes.
Accuracy (AUC) in %, mean of seeds 1 to 3: HQ 84.0 (93.1), mixed 81.9 (90.8), LQ 80.2 (89.1). docs/EXPERIMENTS.md explains the
sets and compares all configs/lfw_* files.

The losses and the augmentation are the paper's; what else suits short runs comes from configs/small_qg.
"""

from easydict import EasyDict as edict

from configs.small_qg import config as small_qg

config = edict(
    small_qg,
    rec="../shared/faces/lfw_train",
    val_dir="../shared/faces/val",
    val_targets=("lfw_hq", "lfw_mixed", "lfw_lq"),
    contrastive_weight=1.0,
    colour_transfer=0.0,
    diagnose_every=50,
)
