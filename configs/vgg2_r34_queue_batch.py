"""Table II, queue "Batch": negatives from the step's own features only.

    torchrun --nproc_per_node=4 train.py configs/vgg2_r34_queue_batch rec=/data/faces_vgg_112x112

The paper's figures (%): SCface d1 87.54, d2 99.38, d3 100.0; TinyFace rank 1 68.67; IJB-B TAR@FAR=1e-4 87.38;
HQ average 95.28.
"""

from easydict import EasyDict as edict

from configs.vgg2_r34_qg import config as vgg2_r34_qg

config = edict(
    vgg2_r34_qg,
    queue="batch",
)
