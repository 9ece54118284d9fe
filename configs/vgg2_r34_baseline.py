"""Table I, baseline: AdaFace; one view, random flip only.

    torchrun --nproc_per_node=4 train.py configs/vgg2_r34_baseline rec=/data/faces_vgg_112x112

Data, hardware, schedule: configs/vgg2_r34_qg. Not trained yet.
The paper's figures (%): SCface d1 61.69, d2 97.23, d3 99.85; TinyFace rank 1 63.98; IJB-B TAR@FAR=1e-4 90.26;
HQ average 95.62.
"""

from easydict import EasyDict as edict

from configs.vgg2_r34_qg import config as vgg2_r34_qg

row = dict(views=1, augmentation="none", quality_threshold=None, queue="none")
config = edict(vgg2_r34_qg, **row)
