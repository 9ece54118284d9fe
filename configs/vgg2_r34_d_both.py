"""A control for table I, row D: AdaFace with the paper's low-quality augmentation, on both views of each image.

    torchrun --nproc_per_node=4 train.py configs/vgg2_r34_d_both rec=/data/faces_vgg_112x112

It sees the same data as QGFace, with the same number of encoder passes per step, but has no partition and no contrast.

Data, hardware, schedule: configs/vgg2_r34_qg. Not trained yet.
The paper has no such row.
"""

from easydict import EasyDict as edict

from configs.vgg2_r34_qg import config as vgg2_r34_qg

row = dict(quality_threshold=None, queue="none")
config = edict(vgg2_r34_qg, **row)
