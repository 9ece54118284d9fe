"""ArcFace with a ResNet-50 on MS1MV3: plain training, one view, random flip only.

    torchrun --nproc_per_node=8 train.py configs/arcface_r50 rec=/data/ms1m-retinaface-t1

Data: insightface's pack of MS1MV3 (93,431 people, 5.2 million images). Schedule: arcface_torch's, for 1,024 images per step on
any number of GPUs. The margin has its exact derivative; `margin_gradient="straight_through"` is arcface_torch's
(docs/MIGRATING.md). Not trained yet, for lack of GPU time.
"""

from easydict import EasyDict as edict

from configs.base import config as base

config = edict(
    base,
    rec="/data/ms1m-retinaface-t1",
    num_classes=93431,
    val_targets=("lfw", "cfp_fp", "agedb_30"),
    num_workers=4,
    views=1,
    augmentation="none",
    quality_threshold=None,
    queue="none",
    network="r50",
    margin="arcface",
    margin_m=0.5,
    global_batch_size=1024,
    num_epoch=20,
    lr=0.1,
    schedule="polynomial",
    polynomial_power=1.0,
    max_grad_norm=5.0,
)
