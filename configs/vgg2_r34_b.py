"""Table I, row B: row A with the partition: features of low quality are left out of the classification loss.

    torchrun --nproc_per_node=4 train.py configs/vgg2_r34_b rec=/data/faces_vgg_112x112

Data, hardware, schedule: configs/vgg2_r34_qg. Not trained yet.
The paper's figures (%): SCface d1 68.15, d2 98.46, d3 100.0; TinyFace rank 1 67.03; IJB-B TAR@FAR=1e-4 70.45;
HQ average 95.73.
"""

from easydict import EasyDict as edict

from configs.vgg2_r34_qg import config as vgg2_r34_qg

row = dict(views=1, augmentation="adaface", queue="none")
config = edict(vgg2_r34_qg, **row)
