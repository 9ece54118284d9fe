"""Table III, b = 0.1: a lower quality threshold.

    torchrun --nproc_per_node=4 train.py configs/vgg2_r34_threshold_01 rec=/data/faces_vgg_112x112

Data, hardware, schedule: configs/vgg2_r34_qg. Not trained yet.
The paper's figures (%): SCface d1 86.00, d2 99.54, d3 100.0; TinyFace rank 1 68.13; IJB-B TAR@FAR=1e-4 90.87;
HQ average 95.41: LFW 99.53, CFP-FP 95.87, AgeDB 94.33, CPLFW 94.47, CALFW 92.83.
"""

from easydict import EasyDict as edict

from configs.vgg2_r34_qg import config as vgg2_r34_qg

row = dict(quality_threshold=0.1)
config = edict(vgg2_r34_qg, **row)
