"""A control beside table I, row D: the paper's augmentation with plain AdaFace, on both views of each image.

    torchrun --nproc_per_node=4 train.py configs/vgg2_r34_d_both rec=/data/faces_vgg_112x112

It learns from what the method learns from, for as many encoder passes a step; what is missing is partition and contrast.
"""

from easydict import EasyDict as edict

from configs.vgg2_r34_qg import config as vgg2_r34_qg

config = edict(
    vgg2_r34_qg,
    quality_threshold=None,
    queue="none",
)
