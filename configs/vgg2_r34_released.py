"""Row E in the form nearest to its authors' released code, which differs from the paper's text (docs/METHOD.md).

    torchrun --nproc_per_node=4 train.py configs/vgg2_r34_released rec=/data/faces_vgg_112x112

The release (https://github.com/IsidoreSong/QGFace, commit c1cfa7b) has no configuration files: what they must have set follows
from its constructors' defaults and from what runs at all. It remains different in its mask and its gates, in statistics and
queue per GPU, and in resizing with Pillow; the probabilities of crop, colour and rotation are not known. "Debatable readings"
in docs/METHOD.md lists each with its key, if it has one.

Data, hardware, schedule: configs/vgg2_r34_qg. Not trained yet. The paper's figures may be this form's; see configs/vgg2_r34_qg.
"""

from easydict import EasyDict as edict

from configs.vgg2_r34_qg import config as vgg2_r34_qg

config = edict(
    vgg2_r34_qg,
    network="ir_34",  # net.py: AdaFace's IR-34
    dropout=0.4,  # net.py: before the fully connected layer
    channel_order="BGR",  # README.md: as AdaFace
    quality_mean=0.0,  # head.py: buffers start at 0, so for the first steps every face counts as high quality
    quality_std=0.0,  # as quality_mean
    contrastive_denominator="infonce",  # head.py: the positive is one of the logits
    contrastive_target="symmetric",  # head.py: pair_coupling="D2N" also pulls the original towards the augmented view
    contrastive_stop_gradient=False,  # head.py: detach_pos=False
    # head.py: rescale=True multiplies by log 129 / log(8,631 + 1) = 0.54, and the loss is the mean of the two directions, whose
    # sum is taken here.
    contrastive_weight=0.27,
)
