"""What a run shows besides its losses, every `diagnose_every` steps: the norms of both views and of both qualities beside the
partition's threshold, and how old entries of the queue compare with fresh features (recognition/monitor/queue_drift.py);
now and then pictures (recognition/monitor/pictures.py).

After a step, a whole batch of this rank is encoded once more, by the weights of now, as its own step encoded it: BatchNorm's
statistics are over the same images. So what lies between an entry of the queue and its image's fresh feature is the encoder's
progress and nothing else; with weights that stand still their cosine is 1. The batch is that of the oldest step whose entries all
are in the queue still; its images are kept until then. (Dropout and the like are off. A step that has them enqueues features
with their noise, and it is in the figures.)

Nothing of the training changes: running statistics are put back, random numbers are not drawn, nothing is learned.

Shapes: V views, B images of this rank, G gathered, R readable ones of them, D embedding. View 0 is the augmented one.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn

from losses.joint import JointLoss
from losses.quality import AnyPartition, QualityStatistics
from recognition.data.prefetch import DeviceBatch
from recognition.encoders.embedder import to_input
from recognition.monitor.pictures import gradient_scale, sheet_of_pairs
from recognition.monitor.progress import Progress
from recognition.monitor.queue_drift import STORED, Drift, measure_drift
from utils import dist
from utils.config import Config
from utils.dist import World
from utils.errors import UserError
from utils.files import write_file

VIEWS = ("augmented", "original")
QUANTILES = (5, 25, 50, 75, 95)
FILE = "pair_differences.json"
LOOKS_A_PICTURE = 10  # looks between two pictures, at least; and not more than one picture an epoch
_GROUP = "diagnostics"


@dataclass(frozen=True)
class _Kept:
    """A step's batch. first: the queue's number of its first entry; None where the step has enqueued nothing."""

    step: int
    images_VBHWC: torch.Tensor
    host_label_G: torch.Tensor
    first: int | None


class Diagnostics:
    """`after_step` after every step, on all ranks; on most of them it returns at once."""

    def __init__(
        self, config: Config, encoder: nn.Module, joint: JointLoss, autocast: torch.dtype | None, world: World, first_step: int,
        steps_per_epoch: int,
    ):  # fmt: skip
        """encoder: the bare module. first_step: where the run goes on from; what was written of later steps is forgotten."""
        self.config, self.steps_a_picture = config, max(steps_per_epoch, LOOKS_A_PICTURE * config.diagnose_every)
        self.every, self.encoder, self.joint, self.autocast, self.world = config.diagnose_every, encoder, joint, autocast, world
        self.queue_kind = config.queue
        in_step = config.views * config.batch_size * world.size * config.gradient_acc
        steps_in_queue = joint.queue.size // in_step if joint.queue is not None else 1
        self.steps_kept = max(1, min(steps_in_queue, self.every)) - 1
        self._kept: _Kept | None = None
        self._total = self._entries()
        self._file = DifferencesFile(Path(config.output) / FILE, first_step) if self.every and world.is_first else None

    def after_step(self, step: int, batch: DeviceBatch, progress: Progress, settle: Callable[[], object]) -> None:
        """`step` steps are done; `batch` was the last batch of the last one. `settle` makes the queue's counters final
        (`TrainStep.settle`); it is called before they are relied on. Collective."""
        keep, look = (bool(self.every) and (step + ahead) % self.every == 0 for ahead in (self.steps_kept, 0))
        if keep or look:
            settle()
        before, self._total = self._total, self._entries()
        if keep:
            self._kept = self._keep(step, batch, before)
        if look and self._kept is not None:
            kept, self._kept = self._kept, None
            self._look(step, kept, progress)

    def _entries(self) -> int:
        return self.joint.queue.total if self.joint.queue is not None else 0

    def _keep(self, step: int, batch: DeviceBatch, entries_before: int) -> _Kept:
        host_label_G = dist.gather_labels(batch.labels_B)
        count = len(batch.images_VBHWC) * int((host_label_G >= 0).sum())
        enqueued = count > 0 and self._total - entries_before >= count
        lent = self.steps_kept > 0 and batch.images_VBHWC.device.type == "cpu"  # the loader's memory, valid for this step only
        images = batch.images_VBHWC.clone() if lent else batch.images_VBHWC
        return _Kept(step, images, host_label_G, self._total - count if enqueued else None)

    @torch.no_grad()
    def _look(self, step: int, kept: _Kept, progress: Progress) -> None:
        fresh_VGD = dist.gather_rows(self._encode(kept.images_VBHWC))
        readable = torch.nonzero(kept.host_label_G >= 0).flatten()
        fresh_VRD = fresh_VGD[:, readable.to(fresh_VGD.device)]
        if not len(readable) or not bool(fresh_VRD.isfinite().all()):
            progress.event(step, diagnostics="left out: no finite features")
            return
        norm_VR = fresh_VRD.norm(dim=2)
        progress.measurements(step, _GROUP, describe_norms(norm_VR, self.joint.quality, self.joint.partition))
        if progress.active:
            high_VR = high_quality(norm_VR, self.joint.quality, self.joint.partition)
            progress.on_board(step, "norms", {}, norms_by_kind(norm_VR, high_VR))
        if self.joint.queue is not None and kept.first is not None:
            host_label_R = kept.host_label_G[readable]
            label_R = host_label_R.to(fresh_VRD.device)
            drifts = measure_drift(
                self.joint.queue, self.joint.classifier.rows_of, fresh_VRD, label_R, host_label_R, kept.first
            )  # fmt: skip
            self._write(step, step - kept.step + 1, drifts, progress)
        first_since = step // self.steps_a_picture != (step - self.every) // self.steps_a_picture
        if progress.active and (first_since or step == self.every):
            self._draw(step, kept, fresh_VGD, progress)

    def _draw(self, step: int, kept: _Kept, fresh_VGD: torch.Tensor, progress: Progress) -> None:
        """Pictures of the first rank's images, whose features are the first of the gathered ones."""
        quality, partition = self.joint.quality, self.joint.partition
        images_VBHWC = kept.images_VBHWC.cpu()
        if self.config.channel_order == "BGR":
            images_VBHWC = images_VBHWC.flip(-1)
        readable = torch.nonzero(kept.host_label_G[: images_VBHWC.shape[1]] >= 0).flatten()
        if len(readable):
            norm_VB = fresh_VGD[:, readable.to(fresh_VGD.device)].norm(dim=2)
            quality_VB, high_VB = quality.normalise(norm_VB).cpu(), high_quality(norm_VB, quality, partition).cpu()
            progress.picture(step, "pairs/HQ_blue_LQ_orange", sheet_of_pairs(images_VBHWC[:, readable], quality_VB, high_VB))
        if (figure := gradient_scale(self.config, float(quality.mean), float(quality.std), partition.threshold)) is not None:
            progress.picture(step, "gradient_scale", figure)

    def _write(self, step: int, age: int, drifts: dict[str, Drift], progress: Progress) -> None:
        for kind, drift in drifts.items():
            name = f"{self.queue_kind}, {kind}" if len(drifts) > 1 or kind != STORED else self.queue_kind
            values = {key: value for key, value in asdict(drift).items() if math.isfinite(value)}
            progress.on_board(step, f"pair_differences/{name.replace(', ', '_').replace(' ', '_')}", values)
            if self._file is not None:
                self._file.add(name, step, age, drift)
        if self._file is not None:
            self._file.write()

    def _encode(self, images_VBHWC: torch.Tensor) -> torch.Tensor:
        """As the step does, but without gradient, dropout, and traces in the encoder: raw float32 [V, B, D]."""
        views, images = images_VBHWC.shape[:2]
        device = self.world.device
        with (
            torch.no_grad(),
            statistics_of_the_batch(self.encoder),
            torch.autocast(device.type, dtype=self.autocast, enabled=self.autocast is not None),
        ):
            dist.arriving("forward pass of the diagnostics")
            features = self.encoder(to_input(images_VBHWC.flatten(0, 1), device))
        return features.float().view(views, images, -1)


@contextlib.contextmanager
def statistics_of_the_batch(encoder: nn.Module) -> Iterator[None]:
    """Within, BatchNorm normalises by the batch's own statistics, as in training, and all else works as in evaluation.
    Afterwards every module is in the mode that it was in, and the running statistics are what they were, to the bit."""
    modes = [(module, module.training) for module in encoder.modules()]
    norms = [module for module, _ in modes if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    buffers = [buffer for norm in norms for buffer in norm.buffers(recurse=False)]
    copies = [buffer.clone() for buffer in buffers]
    encoder.eval()
    for norm in norms:
        norm.training = True
    try:
        yield
    finally:
        for buffer, copy in zip(buffers, copies, strict=True):
            buffer.copy_(copy)
        for module, mode in modes:
            module.training = mode


def high_quality(norm_VR: torch.Tensor, quality: QualityStatistics, partition: AnyPartition) -> torch.Tensor:
    """Which features would be classified: boolean [V, R]."""
    return partition.high_quality(quality.normalise(norm_VR).flatten()).view_as(norm_VR)


def norms_by_kind(norm_VR: torch.Tensor, high_VR: torch.Tensor) -> dict[str, torch.Tensor]:
    """Norms on the CPU by view, and of the features of high and of low quality, where there are some."""
    kinds = dict(zip(VIEWS, norm_VR, strict=False)) | {"high_quality": norm_VR[high_VR], "low_quality": norm_VR[~high_VR]}
    return {kind: norms.cpu() for kind, norms in kinds.items() if len(norms)}


def describe_norms(
    norm_VR: torch.Tensor, quality: QualityStatistics, partition: AnyPartition
) -> dict[str, float]:  # fmt: skip
    """Of each view the share of high quality and quantiles of the norms; the share of pairs with a feature of low quality, and of
    those whose augmented view has the smaller norm (1/2: the norm knows nothing of the quality; 1: all of it); the norm at which
    the partition divides, mu + (sigma + epsilon) / c (2 b - 1), if it does."""
    quality_VR = quality.normalise(norm_VR)
    high_VR = high_quality(norm_VR, quality, partition)
    values: dict[str, float] = {}
    levels = torch.tensor(QUANTILES, dtype=norm_VR.dtype, device=norm_VR.device) / 100
    for view, norm_R, high_R in zip(VIEWS, norm_VR, high_VR, strict=False):
        values[f"{view}/high_quality_share"] = float(high_R.float().mean())
        quantiles = torch.quantile(norm_R, levels).tolist()
        values |= {f"{view}/norm_p{level:02d}": value for level, value in zip(QUANTILES, quantiles, strict=True)}
    if len(norm_VR) > 1:
        values["low_quality_pair_share"] = float(partition.low_quality_pairs(quality_VR).float().mean())
        values["augmented_norm_smaller_share"] = float((norm_VR[0] < norm_VR[1]).float().mean())
    if partition.threshold is not None:
        values["threshold_norm"] = quality.norm_of(2 * partition.threshold - 1)
    return values


class DifferencesFile:
    """RUN/pair_differences.json: queue -> lists of one length: `steps`, `age` (of the entries whose `cosine` was measured, in
    updates of the weights), `positive`, `negative`, `cosine`; null where there was nothing to measure. Rank 0's."""

    def __init__(self, path: Path, first_step: int):
        self.path = path
        self.curves: dict[str, dict[str, list[float | None]]] = {}
        if first_step and path.is_file():
            self._read(first_step)
        else:
            path.unlink(missing_ok=True)

    def _read(self, first_step: int) -> None:
        """What was written up to the step that the run goes on from."""
        try:
            for name, curves in json.loads(self.path.read_text()).items():
                kept = [n for n, step in enumerate(curves["steps"]) if step <= first_step]
                self.curves[name] = {key: [values[n] for n in kept] for key, values in curves.items()}
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as fault:
            raise UserError(f"{self.path}: cannot be read ({fault}); remove it") from fault

    def add(self, name: str, step: int, age: int, drift: Drift) -> None:
        point = {"steps": step, "age": age, **asdict(drift)}
        curves = self.curves.setdefault(name, {key: [] for key in point})
        for key, value in point.items():
            curves[key].append(value if math.isfinite(value) else None)

    def write(self) -> None:
        """Replace the file; a reader sees the old or the new content, never a part."""
        write_file(self.path, json.dumps(self.curves), advice="free some space, or set diagnose_every=0")
