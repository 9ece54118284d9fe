"""Table I, row A: AdaFace with its own augmentation (crop, rescaling, colour, each with probability 0.2); one view.

    torchrun --nproc_per_node=4 train.py configs/vgg2_r34_a rec=/data/faces_vgg_112x112

Data, hardware, schedule: configs/vgg2_r34_qg. Not trained yet.
The paper's figures (%): SCface d1 66.77, d2 99.08, d3 100.0; TinyFace rank 1 67.49; IJB-B TAR@FAR=1e-4 74.07;
HQ average 95.76.
"""

from easydict import EasyDict as edict

from configs.vgg2_r34_qg import config as vgg2_r34_qg

row = dict(views=1, augmentation="adaface", quality_threshold=None, queue="none")
config = edict(vgg2_r34_qg, **row)
