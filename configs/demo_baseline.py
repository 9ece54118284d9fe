"""What the demo compares with: plain AdaFace on the faces of configs/demo_qg, for as many epochs.

    ./run.sh                                                 # both, and their table
    ./run.sh train configs/demo_baseline                     # this alone

One view (flip only) of each image, so a step costs half of one of QGFace's. For as many encoder passes: num_epoch=6
warmup_epoch=1.
"""

from easydict import EasyDict as edict

from configs.demo_qg import config as demo_qg

config = edict(
    demo_qg,
    views=1,
    augmentation="none",
    quality_threshold=None,
    queue="none",
)
