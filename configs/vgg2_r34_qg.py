"""QGFace as in the paper: row E of table I, the last rows of tables II ("proxy-updated") and III (b = 0.2).

    torchrun --nproc_per_node=4 train.py configs/vgg2_r34_qg rec=/data/faces_vgg_112x112

Data: insightface's pack of VGGFace2 (8,631 identities, 3.1 M images). The paper's hardware: 4 A100; 4 x 128 images a step.
All else of the paper's setting is in configs/base.py: ResNet34, SGD with lr 0.2, divided by ten after epochs 6 and 9 of 12.
The paper's figures (%): SCface d1 92.31, d2 99.54, d3 100.0; TinyFace rank 1 69.85; IJB-B TAR@FAR=1e-4 91.05;
LFW 99.50, CFP-FP 96.03, AgeDB 94.00, CPLFW 94.48, CALFW 93.12; HQ average 95.43. Ours at this size have not been measured.
"""

from easydict import EasyDict as edict

from configs.base import config as base

config = edict(
    base,
    rec="/data/faces_vgg_112x112",
    num_classes=8631,
    val_targets=("lfw", "cfp_fp", "agedb_30"),
    num_workers=4,
)
