"""QGFace as in the paper: row E of table I, "proxy-updated" in table II, b = 0.2 in table III.

    torchrun --nproc_per_node=4 train.py configs/vgg2_r34_qg rec=/data/faces_vgg_112x112

Data: insightface's pack of VGGFace2 (8,631 people, 3.1 million images), with cplfw.bin and calfw.bin from its MS1M packs, or
val_targets=lfw,cfp_fp,agedb_30. Hardware: any number of GPUs, 512 images per step; the
paper used four A100 with 128 images each. Schedule: the defaults of configs/base.py. Not trained yet, for lack of GPU time; how
long it takes is not known.
The paper's figures (%): SCface d1 92.31, d2 99.54, d3 100.0; TinyFace rank 1 69.85; IJB-B TAR@FAR=1e-4 91.05;
HQ average 95.43: LFW 99.50, CFP-FP 96.03, AgeDB 94.00, CPLFW 94.48, CALFW 93.12.
"""

from easydict import EasyDict as edict

from configs.base import config as base

config = edict(
    base,
    rec="/data/faces_vgg_112x112",
    num_classes=8631,
    val_targets=("lfw", "cfp_fp", "agedb_30", "cplfw", "calfw"),  # the paper's five HQ sets
    num_workers=4,
    global_batch_size=512,
)
