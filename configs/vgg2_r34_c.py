"""Table I, row C: QGFace with AdaFace's augmentation.

    torchrun --nproc_per_node=4 train.py configs/vgg2_r34_c rec=/data/faces_vgg_112x112

The contrastive loss needs two views, augmented and original, which rows A and B do not have.

Data, hardware, schedule: configs/vgg2_r34_qg. Not trained yet.
The paper's figures (%): SCface d1 70.92, d2 98.62, d3 99.69; TinyFace rank 1 66.58; IJB-B TAR@FAR=1e-4 90.59;
HQ average 95.71.
"""

from easydict import EasyDict as edict

from configs.vgg2_r34_qg import config as vgg2_r34_qg

row = dict(augmentation="adaface")
config = edict(vgg2_r34_qg, **row)
