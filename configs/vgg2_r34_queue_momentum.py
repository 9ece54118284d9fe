"""Table II, queue "Momentum": MoCo's. A momentum encoder (m = 0.999) gives the positive keys and fills the queue.

    torchrun --nproc_per_node=4 train.py configs/vgg2_r34_queue_momentum rec=/data/faces_vgg_112x112

As with the other queues both views are enqueued, so that the rows differ in the queue alone. The authors' released code
gives the encoder the original views alone with this queue (docs/METHOD.md); if it made the figures, they include that.

The paper's figures (%): SCface d1 63.08, d2 97.85, d3 99.85; TinyFace rank 1 62.34; IJB-B TAR@FAR=1e-4 88.70;
HQ average 95.18: LFW 99.55, CFP-FP 96.03, AgeDB 93.98, CPLFW 94.65, CALFW 91.68.
"""

from easydict import EasyDict as edict

from configs.vgg2_r34_qg import config as vgg2_r34_qg

config = edict(
    vgg2_r34_qg,
    queue="momentum",
)
