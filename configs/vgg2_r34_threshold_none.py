"""Table III, no threshold: no partition; both losses use all data.

    torchrun --nproc_per_node=4 train.py configs/vgg2_r34_threshold_none rec=/data/faces_vgg_112x112

Data, hardware, schedule: configs/vgg2_r34_qg. Not trained yet.
The paper's figures (%): SCface d1 90.77, d2 99.69, d3 100.0; TinyFace rank 1 69.80; IJB-B TAR@FAR=1e-4 91.26;
HQ average 95.08: LFW 99.58, CFP-FP 95.79, AgeDB 93.95, CPLFW 93.42, CALFW 92.67.
"""

from easydict import EasyDict as edict

from configs.vgg2_r34_qg import config as vgg2_r34_qg

row = dict(quality_threshold=None)
config = edict(vgg2_r34_qg, **row)
