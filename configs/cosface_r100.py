"""CosFace with a ResNet-100 on Glint360K: plain training, one view, random flip only.

    torchrun --nproc_per_node=8 train.py configs/cosface_r100 rec=/data/glint360k
    torchrun --nproc_per_node=8 train.py configs/cosface_r100 rec=/data/glint360k sample_rate=0.1      # partial FC

Data: insightface's pack of Glint360K (360,232 people, 17.1 million images). Schedule: as in configs/arcface_r50. Not trained yet,
for lack of GPU time.
"""

from easydict import EasyDict as edict

from configs.arcface_r50 import config as arcface_r50

config = edict(
    arcface_r50,
    rec="/data/glint360k",
    num_classes=360232,
    network="r100",
    margin="cosface",
    margin_m=0.4,
    weight_decay=1e-4,
)
