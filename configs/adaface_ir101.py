"""AdaFace with an IR-101 on MS1MV2: one view, AdaFace's augmentation (crop, low resolution, colour), BGR.

    torchrun --nproc_per_node=4 train.py configs/adaface_ir101 rec=/data/faces_emore

Data: insightface's pack of MS1MV2 (85,742 people, 5.8 million images). Schedule and constants: those of AdaFace's released
training script, for 512 images per step on any number of GPUs. Not trained yet, for lack of GPU time.
"""

from easydict import EasyDict as edict

from configs.base import config as base

config = edict(
    base,
    rec="/data/faces_emore",
    num_classes=85742,
    val_targets=("lfw", "cfp_fp", "agedb_30"),
    num_workers=4,
    channel_order="BGR",
    views=1,
    augmentation="adaface",
    quality_threshold=None,
    queue="none",
    network="ir_101",
    margin="adaface",
    margin_m=0.4,
    global_batch_size=512,
    num_epoch=26,
    lr=0.1,
    milestones=(12, 20, 24),
)
