"""Table I, row D: plain AdaFace with the paper's augmentation.

    torchrun --nproc_per_node=4 train.py configs/vgg2_r34_d rec=/data/faces_vgg_112x112

The paper does not say whether one view is learned or both. Here it is one, the augmented, as in any training with an
augmentation and as in row A, with half of E's encoder passes; `vgg2_r34_d_both` learns both, as E does, and is what the authors'
released code can do (docs/METHOD.md).

The paper's figures (%): SCface d1 88.62, d2 99.23, d3 100.0; TinyFace rank 1 68.80; IJB-B TAR@FAR=1e-4 89.50;
HQ average 95.46.
"""

from easydict import EasyDict as edict

from configs.vgg2_r34_qg import config as vgg2_r34_qg

config = edict(
    vgg2_r34_qg,
    views=1,
    quality_threshold=None,
    queue="none",
)
