"""Pictures of a run for TensorBoard: pairs of views marked by the partition (the paper's figure 5), and AdaFace's gradient scale
with the quality statistics of the moment (its figure 2). Drawn on rank 0 (recognition/monitor/diagnostics.py).

Shapes: V views, B images, of which view 0 is the augmented one.
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
    """uint8 RGB [height, width, 3]: at most PAIRS images, a column each, from the pair of the highest quality to that of the
    lowest (of its worse view), evenly; above the original, below the augmented view. A frame is blue where the feature would now
    be classified (HQ), orange where it would not (LQ).

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
    if config.margin != "adaface":
        return None
    quality = QualityScale(mean, std, config.quality_concentration, threshold)
    return draw_gradient_scale(gradient_map(config.margin_m, config.scale, config.num_classes, quality))
