"""Table III, b = 0.3: a higher quality threshold.

    torchrun --nproc_per_node=4 train.py configs/vgg2_r34_threshold_03 rec=/data/faces_vgg_112x112

Data, hardware, schedule: configs/vgg2_r34_qg. Not trained yet.
The paper's figures (%): SCface d1 88.92, d2 99.54, d3 100.0; TinyFace rank 1 68.51; IJB-B TAR@FAR=1e-4 89.33;
HQ average 94.95: LFW 99.55, CFP-FP 95.03, AgeDB 94.27, CPLFW 93.77, CALFW 92.15.
"""

from easydict import EasyDict as edict

from configs.vgg2_r34_qg import config as vgg2_r34_qg

row = dict(quality_threshold=0.3)
config = edict(vgg2_r34_qg, **row)
