"""Table II, no queue: augmentation and partition without the contrastive loss, on both views of each image.

    torchrun --nproc_per_node=4 train.py configs/vgg2_r34_queue_none rec=/data/faces_vgg_112x112

Data, hardware, schedule: configs/vgg2_r34_qg. Not trained yet.
The paper's figures (%): SCface d1 87.85, d2 99.38, d3 100.0; TinyFace rank 1 68.24; IJB-B TAR@FAR=1e-4 90.57;
HQ average 95.47: LFW 99.45, CFP-FP 96.00, AgeDB 94.20, CPLFW 94.67, CALFW 93.05.
"""

from easydict import EasyDict as edict

from configs.vgg2_r34_qg import config as vgg2_r34_qg

row = dict(queue="none")
config = edict(vgg2_r34_qg, **row)
