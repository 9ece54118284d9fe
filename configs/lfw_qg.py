"""QGFace on 430 real people (3,831 LFW photographs, `../shared/faces/lfw_train`): minutes on two CPU cores.

    python train.py configs/lfw_qg                           # one process
    torchrun --nproc_per_node=2 train.py configs/lfw_qg      # the same batches, divided

The folder is not part of this repository; rec= and val_dir= name other data (docs/DATA.md has a recipe for such sets).
Figures to expect on unseen people are in docs/EXPERIMENTS.md. What suits long runs in the paper is other here: margin and scale
(of both losses) are gentler, and the moving quality statistics start where such a run has them (from 20 and 100, sigma is more
than twice the norms' own spread for the first 320 of 790 steps, as by a warm-up; what was learned came out the same).
"""

from easydict import EasyDict as edict

from configs.small_qg import config as small_qg

config = edict(
    small_qg,
    rec="../shared/faces/lfw_train",
    val_dir="../shared/faces/val",
    val_targets=("lfw_hq", "lfw_mixed", "lfw_lq"),
    contrastive_denominator="paper",
    contrastive_weight=1.0,
    diagnose_every=50,
)
