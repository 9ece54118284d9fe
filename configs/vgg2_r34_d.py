"""Table I, row D: AdaFace with the paper's low-quality augmentation; one view.

    torchrun --nproc_per_node=4 train.py configs/vgg2_r34_d rec=/data/faces_vgg_112x112

The paper does not say whether it trains on one view or both. This file trains on the augmented one, as is usual and as in row A,
with half of E's encoder passes. `vgg2_r34_d_both` trains on both, as E does. The authors' released
code has no row with one view and this augmentation (docs/METHOD.md).

Data, hardware, schedule: configs/vgg2_r34_qg. Not trained yet.
The paper's figures (%): SCface d1 88.62, d2 99.23, d3 100.0; TinyFace rank 1 68.80; IJB-B TAR@FAR=1e-4 89.50;
HQ average 95.46.
"""

from easydict import EasyDict as edict

from configs.vgg2_r34_qg import config as vgg2_r34_qg

row = dict(views=1, quality_threshold=None, queue="none")
config = edict(vgg2_r34_qg, **row)
