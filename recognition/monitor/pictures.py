"""Pictures of a run for TensorBoard: pairs of views marked by the partition (figure 5 of QGFace), and AdaFace's gradient scale
with the current quality statistics (figure 2). Rank 0 draws them (recognition/monitor/diagnostics.py).

Shapes: V views, B images. View 0 is the augmented one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from eval.present.plots import draw_gradient_scale
from recognition.encoders.card import QualityScale
from recognition.monitor.gradient_scale import gradient_map
from utils.config import Config

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PAIRS = 16
FRAME = 4  # pixels
HIGH_QUALITY, LOW_QUALITY = (0, 114, 178), (230, 159, 0)  # blue and orange, RGB


def sheet_of_pairs(images_VBHWC: torch.Tensor, quality_VB: torch.Tensor, high_VB: torch.Tensor) -> np.ndarray:
    """A sheet with one column per pair, the original above the augmented view: uint8 RGB [height, width, 3].

    At most PAIRS pairs, evenly spaced from the highest to the lowest quality (of a pair's worse view). A frame is blue if the
    feature would be classified at present (HQ), else orange (LQ).
    images_VBHWC: uint8 RGB on the CPU. quality_VB, high_VB: of the same images, any device.
    """
    order_B = quality_VB.amin(dim=0).argsort(descending=True).tolist()
    chosen = [order_B[i] for i in np.unique(np.linspace(0, len(order_B) - 1, PAIRS).astype(int))]
    views, _, height, width, _ = images_VBHWC.shape
    sheet = np.empty((views, height + 2 * FRAME, len(chosen), width + 2 * FRAME, 3), np.uint8)
    for row, view in enumerate(reversed(range(views))):
        for column, image in enumerate(chosen):
            sheet[row, :, column] = HIGH_QUALITY if high_VB[view, image] else LOW_QUALITY
            sheet[row, FRAME:-FRAME, column, FRAME:-FRAME] = images_VBHWC[view, image].numpy()
    return sheet.reshape(views * (height + 2 * FRAME), -1, 3)


def gradient_scale(config: Config, mean: float, std: float, threshold: float | None) -> Figure | None:
    """The paper's figure 2 for the run's margin, scale and classes and the current mu, sigma and b; None for other margins."""
    if config.margin != "adaface" or config.margin_m is None:
        return None
    quality = QualityScale(mean, std, config.quality_concentration, threshold)
    return draw_gradient_scale(gradient_map(config.margin_m, config.scale, config.num_classes, quality))
