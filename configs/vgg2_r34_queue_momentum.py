"""Table II, momentum: a momentum encoder (m = 0.999) computes the positives and fills the queue, as in MoCo.

    torchrun --nproc_per_node=4 train.py configs/vgg2_r34_queue_momentum rec=/data/faces_vgg_112x112

As in section III-C, the augmented view goes into the momentum encoder only, and the encoder learns from originals. With
momentum_views=both it learns from both views, as with the other queues: a control.

Data, hardware, schedule: configs/vgg2_r34_qg. Not trained yet.
The paper's figures (%): SCface d1 63.08, d2 97.85, d3 99.85; TinyFace rank 1 62.34; IJB-B TAR@FAR=1e-4 88.70;
HQ average 95.18: LFW 99.55, CFP-FP 96.03, AgeDB 93.98, CPLFW 94.65, CALFW 91.68.
"""

from easydict import EasyDict as edict

from configs.vgg2_r34_qg import config as vgg2_r34_qg

row = dict(queue="momentum", momentum_views="augmented")
config = edict(vgg2_r34_qg, **row)
