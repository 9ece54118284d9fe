"""What a run reports next to its losses, every `diagnose_every` steps: the norms of both views and of both qualities, with the
partition's threshold; how old entries of the queue compare with fresh features (recognition/monitor/queue_drift.py); and, less
often, pictures (recognition/monitor/pictures.py).

For this, one batch of this rank is encoded again after a step, with the current weights but exactly as in its own step:
BatchNorm uses the statistics of the same images. The difference between a queue entry and its image's fresh feature is
therefore the encoder's progress and nothing else; with constant weights their cosine is 1. The batch is that of the oldest step
whose entries are all still in the queue; its images are kept until then. (Dropout is off. In a run that uses it, the queue's
features contain its noise, and the figures include that.)

Training is not affected: running statistics are put back, no random numbers are drawn, nothing is learned.

Shapes: V views, B images of this rank, G gathered, R of them readable, D embedding. View 0 is the augmented one.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from losses.quality import AnyPartition, QualityStatistics, graded
from recognition.data.prefetch import DeviceBatch
from recognition.monitor.pictures import gradient_scale, sheet_of_pairs
from recognition.monitor.progress import Progress
from recognition.monitor.queue_drift import STORED, Drift, measure_drift
from recognition.snapshot import batch_statistics
from recognition.step import TrainStep
from utils import dist
from utils.config import Config, learned_views
from utils.errors import UserError
from utils.files import write_file
from utils.labels import UNREADABLE

VIEWS = ("augmented", "original")
QUANTILES = (5, 25, 50, 75, 95)
FILE = "pair_differences.json"
DIAGNOSES_PER_PICTURE = 10  # at least; and at most one set of pictures per epoch


@dataclass(frozen=True)
class _Kept:
    """A step's batch. first: sequence number of its first queue entry; None if the step added no entries. grade_G: as in
    `JointLoss.forward`."""

    step: int
    images_VBHWC: torch.Tensor
    host_label_G: torch.Tensor
    first: int | None
    grade_G: torch.Tensor | None

    def grade_of(self, images: torch.Tensor, device: torch.device) -> torch.Tensor | None:
        return None if self.grade_G is None else self.grade_G[images].to(device)


class Diagnostics:
    """Call `after_step` after every step, on all ranks; it returns at once after most of them.

    first_step: where the run starts; what was written about later steps is dropped.
    """

    def __init__(self, config: Config, train_step: TrainStep, progress: Progress, steps_per_epoch: int, first_step: int):
        self.config, self.train_step, self.progress = config, train_step, progress
        self.encoder, self.joint = train_step.state.encoder, train_step.state.joint
        self.every = config.diagnose_every
        self.steps_per_picture = max(steps_per_epoch, DIAGNOSES_PER_PICTURE * self.every)
        _, world = dist.rank_and_world()
        self.views_in_queue = learned_views(config)
        entries_per_step = self.views_in_queue * config.batch_size * world * config.gradient_acc
        steps_in_queue = self.joint.queue.size // entries_per_step if self.joint.queue is not None else 1
        self.steps_kept = max(1, min(steps_in_queue, self.every)) - 1
        self._kept: _Kept | None = None
        self._total = self._entries()
        self._file = DifferencesFile(Path(config.output) / FILE, first_step) if self.every and progress.active else None

    def after_step(self, step: int, batch: DeviceBatch, grade_G: torch.Tensor | None = None) -> None:
        """`step` steps are done; `batch` is the last batch of the last one, with grades if it has some. Collective."""
        keep, diagnose = (bool(self.every) and (step + ahead) % self.every == 0 for ahead in (self.steps_kept, 0))
        if keep or diagnose:
            self.train_step.finish_step()  # the queue's counters are final
        before, self._total = self._total, self._entries()
        if keep:
            self._kept = self._keep(step, batch, before, grade_G)
        if diagnose and self._kept is not None:
            kept, self._kept = self._kept, None
            self._diagnose(step, kept)

    def _entries(self) -> int:
        return self.joint.queue.total if self.joint.queue is not None else 0

    def _keep(self, step: int, batch: DeviceBatch, entries_before: int, grade_G: torch.Tensor | None) -> _Kept:
        host_label_G = dist.gather_labels(batch.labels_B)
        count = self.views_in_queue * int((host_label_G != UNREADABLE).sum())
        enqueued = count > 0 and self._total - entries_before >= count
        borrowed = (
            self.steps_kept > 0 and batch.images_VBHWC.device.type == "cpu"
        )  # the loader's memory, valid for this step only
        images = batch.images_VBHWC.clone() if borrowed else batch.images_VBHWC
        return _Kept(step, images, host_label_G, self._total - count if enqueued else None, grade_G)

    @torch.no_grad()
    def _diagnose(self, step: int, kept: _Kept) -> None:
        # Fresh features of the kept batch, on all ranks.
        dist.mark_collective("forward pass of the diagnostics")
        with batch_statistics(self.encoder):
            fresh_VBD = self.train_step.encode(self.encoder, kept.images_VBHWC)
        fresh_VGD = dist.gather_rows(fresh_VBD)
        readable = torch.nonzero(kept.host_label_G != UNREADABLE).flatten()
        fresh_VRD = fresh_VGD[:, readable.to(fresh_VGD.device)]
        labelled = torch.nonzero(kept.host_label_G[readable] >= 0).flatten()
        if not len(labelled) or not bool(fresh_VRD.isfinite().all()):
            self.progress.event(step, diagnostics="left out: no finite features")
            return

        # Norms by view and by quality, of the labelled images: those that the partition divides.
        quality, partition = self.joint.quality, self.joint.partition
        norm_VR = fresh_VRD.norm(dim=2)[:, labelled.to(fresh_VRD.device)]
        grade_R = kept.grade_of(readable[labelled], norm_VR.device)
        self.progress.measurements(step, "diagnostics", describe_norms(norm_VR, quality, partition, grade_R))
        if self.progress.active:
            high_VR = high_quality(norm_VR, quality, partition, grade_R)
            self.progress.on_board(step, "norms", {}, norms_by_kind(norm_VR, high_VR))

        # Drift of the queue.
        if self.joint.queue is not None and kept.first is not None:
            host_label_R = kept.host_label_G[readable]
            label_R = host_label_R.to(fresh_VRD.device)
            proxies = self.joint.classifier.rows_of
            drifts = measure_drift(self.joint.queue, proxies, fresh_VRD[: self.views_in_queue], label_R, host_label_R, kept.first)
            self._report_drift(step, step - kept.step + 1, drifts)

        # Pictures.
        is_due = step // self.steps_per_picture != (step - self.every) // self.steps_per_picture
        if self.progress.active and (is_due or step == self.every):
            self._draw(step, kept, fresh_VGD)

    def _draw(self, step: int, kept: _Kept, fresh_VGD: torch.Tensor) -> None:
        """Pictures of the first rank's images, whose features come first among the gathered ones."""
        quality, partition = self.joint.quality, self.joint.partition
        images_VBHWC = kept.images_VBHWC.cpu()
        if self.config.channel_order == "BGR":
            images_VBHWC = images_VBHWC.flip(-1)
        readable = torch.nonzero(kept.host_label_G[: images_VBHWC.shape[1]] != UNREADABLE).flatten()
        if len(readable):
            norm_VB = fresh_VGD[:, readable.to(fresh_VGD.device)].norm(dim=2)
            grade_B = kept.grade_of(readable, norm_VB.device)
            high_VB = high_quality(norm_VB, quality, partition, grade_B).cpu()
            sheet = sheet_of_pairs(images_VBHWC[:, readable], graded(quality.normalise(norm_VB), grade_B).cpu(), high_VB)
            self.progress.picture(step, "pairs/HQ_blue_LQ_orange", sheet)
        figure = gradient_scale(self.config, float(quality.mean), float(quality.std), partition.threshold)
        if figure is not None:
            self.progress.picture(step, "gradient_scale", figure)

    def _report_drift(self, step: int, age: int, drifts: dict[str, Drift]) -> None:
        kind_of_queue = self.config.queue
        for kind, drift in drifts.items():
            name = f"{kind_of_queue}, {kind}" if len(drifts) > 1 or kind != STORED else kind_of_queue
            values = {key: value for key, value in asdict(drift).items() if math.isfinite(value)}
            self.progress.on_board(step, f"pair_differences/{name.replace(', ', '_').replace(' ', '_')}", values)
            if self._file is not None:
                self._file.add(name, step, age, drift)
        if self._file is not None:
            self._file.write()


def high_quality(
    norm_VR: torch.Tensor, quality: QualityStatistics, partition: AnyPartition, grade_R: torch.Tensor | None = None
) -> torch.Tensor:
    """Which features would be classified: boolean [V, R]."""
    return partition.high_quality(graded(quality.normalise(norm_VR), grade_R).flatten()).view_as(norm_VR)


def norms_by_kind(norm_VR: torch.Tensor, high_VR: torch.Tensor) -> dict[str, torch.Tensor]:
    """Norms on the CPU: of each view, and of the features of high and of low quality if there are any."""
    kinds = dict(zip(VIEWS, norm_VR, strict=False)) | {"high_quality": norm_VR[high_VR], "low_quality": norm_VR[~high_VR]}
    return {kind: norms.cpu() for kind, norms in kinds.items() if len(norms)}


def describe_norms(
    norm_VR: torch.Tensor, quality: QualityStatistics, partition: AnyPartition, grade_R: torch.Tensor | None = None
) -> dict[str, float]:
    """Figures about the norms and the partition.

    VIEW/high_quality_share, VIEW/norm_pNN: share of high quality, and quantiles of the norms, of each view.
    low_quality_pair_share: pairs with a feature of low quality.
    augmented_norm_smaller_share: pairs whose augmented view has the smaller norm (1/2: the norm contains nothing about the
    quality; 1: it orders every pair correctly).
    threshold_norm: where the partition divides, mu + (sigma + epsilon) / c (2 b - 1), if it has a threshold b of norms.
    """
    high_VR = high_quality(norm_VR, quality, partition, grade_R)
    values: dict[str, float] = {}
    levels = torch.tensor(QUANTILES, dtype=norm_VR.dtype, device=norm_VR.device) / 100
    for view, norm_R, high_R in zip(VIEWS, norm_VR, high_VR, strict=False):
        values[f"{view}/high_quality_share"] = float(high_R.float().mean())
        quantiles = torch.quantile(norm_R, levels).tolist()
        values |= {f"{view}/norm_p{level:02d}": value for level, value in zip(QUANTILES, quantiles, strict=True)}
    if len(norm_VR) > 1:
        values["low_quality_pair_share"] = float(
            partition.low_quality_pairs(graded(quality.normalise(norm_VR), grade_R)).float().mean()
        )
        values["augmented_norm_smaller_share"] = float((norm_VR[0] < norm_VR[1]).float().mean())
    if partition.threshold is not None and grade_R is None:
        values["threshold_norm"] = quality.norm_of(2 * partition.threshold - 1)
    return values


class DifferencesFile:
    """RUN/pair_differences.json, written by rank 0: queue -> lists of equal length.

    steps. age: of the entries whose cosine was measured, in updates of the weights. the others: as in `Drift`,
    null if there was nothing to measure.
    """

    def __init__(self, path: Path, first_step: int):
        self.path = path
        self.curves: dict[str, dict[str, list[float | None]]] = {}
        if first_step and path.is_file():
            self._read(first_step)
        else:
            path.unlink(missing_ok=True)

    def _read(self, first_step: int) -> None:
        """Keep what was written up to the step from which the run resumes."""
        try:
            for name, curves in json.loads(self.path.read_bytes()).items():
                kept = [n for n, step in enumerate(curves["steps"]) if step <= first_step]
                self.curves[name] = {key: [values[n] for n in kept] for key, values in curves.items()}
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise UserError(f"{self.path}: cannot be read ({error}); remove it") from error

    def add(self, name: str, step: int, age: int, drift: Drift) -> None:
        point = {"steps": step, "age": age, **asdict(drift)}
        curves = self.curves.setdefault(name, {key: [] for key in point})
        earlier = len(curves["steps"])
        for key, value in point.items():  # a resumed file may be of a version that measured less
            curves.setdefault(key, [None] * earlier).append(value if math.isfinite(value) else None)

    def write(self) -> None:
        """Replace the file; a reader sees the old or the new content, never a part."""
        write_file(self.path, json.dumps(self.curves), advice="free some space, or set diagnose_every=0")
