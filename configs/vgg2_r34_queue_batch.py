"""Table II, batch: the negatives are the features of the current step.

    torchrun --nproc_per_node=4 train.py configs/vgg2_r34_queue_batch rec=/data/faces_vgg_112x112

Data, hardware, schedule: configs/vgg2_r34_qg. Not trained yet.
The paper's figures (%): SCface d1 87.54, d2 99.38, d3 100.0; TinyFace rank 1 68.67; IJB-B TAR@FAR=1e-4 87.38;
HQ average 95.28: LFW 99.55, CFP-FP 95.96, AgeDB 94.38, CPLFW 93.85, CALFW 92.68.
"""

from easydict import EasyDict as edict

from configs.vgg2_r34_qg import config as vgg2_r34_qg

row = dict(queue="batch")
config = edict(vgg2_r34_qg, **row)
