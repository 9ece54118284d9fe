"""How far the queue's entries are from the encoder's current features (QGFace, section III-C and figure 3b).

The encoder changes while an entry waits in the queue. These figures measure by how much, for entries as they are stored and for
entries compensated with their proxies:

    cosine     between an entry and the CURRENT feature of the same view of the same image
    positive   mean of 1 - cos(current feature of an augmented view, entry) over the entries of the same person's other images
    negative   the same over the entries of other people
    own_key    mean of 1 - cos(current feature of an augmented view, entry of its own original), the paper's positive pairs

Each rank compares the entries that it holds with the current features of the whole world; the sums are added over the ranks.

Shapes: V views, R readable images of the world, K entries of this rank, D embedding.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from losses.proxy_queue import FeatureQueue, Proxies
from utils import dist

_CHUNK = 8192  # entries at a time: R x 8192 cosines
_FIGURES = 4  # of a Drift
STORED, COMPENSATED = "as stored", "compensated"


@dataclass(frozen=True)
class Drift:
    """Means over pairs; NaN if there is no such pair."""

    positive: float
    negative: float
    cosine: float
    own_key: float


@torch.no_grad()
def measure_drift(
    queue: FeatureQueue, proxies: Proxies, fresh_VRD: torch.Tensor, label_R: torch.Tensor, host_label_R: torch.Tensor, first: int
) -> dict[str, Drift]:
    """Drift per kind of entry: `STORED` and, if the queue keeps proxies, `COMPENSATED`. Collective.

    fresh_VRD: current raw features, equal on all ranks, of the images that were enqueued as entries `first` … `first` + V*R - 1,
    view by view; entries that the queue has dropped since are left out. label_R: int64 on the device; host_label_R: the same
    on the CPU. Returns {} if entries with these numbers have other labels, which means that they are of other images.
    """
    kinds = (STORED, COMPENSATED) if queue.compensate else (STORED,)
    unit_VRD = F.normalize(fresh_VRD, dim=2)
    sums = torch.zeros(1 + 2 * _FIGURES * len(kinds), dtype=torch.float64, device=fresh_VRD.device)
    for start in range(0, len(queue), _CHUNK):
        part = range(start, min(start + _CHUNK, len(queue)))
        sums += _sums_of(queue, proxies, unit_VRD, label_R, host_label_R, first, part, kinds)
    foreign, *numbers = dist.sum_over_ranks(sums).tolist()
    if foreign:
        return {}
    means = [total / count if count else float("nan") for total, count in zip(numbers[::2], numbers[1::2], strict=True)]
    found = {}
    for number, kind in enumerate(kinds):
        positive, negative, itself, key = means[_FIGURES * number : _FIGURES * (number + 1)]
        found[kind] = Drift(1 - positive, 1 - negative, itself, 1 - key)
    return found


def _sums_of(queue, proxies, unit_VRD, label_R, host_label_R, first: int, part: range, kinds: tuple[str, ...]) -> torch.Tensor:
    """Number of entries with unexpected labels; then, per kind, sum and number of the cosines of each figure of a `Drift`."""
    device, images = unit_VRD.device, unit_VRD.shape[1]
    place_K = queue.sequence(part.start, part.stop) - first
    mine = torch.nonzero((place_K >= 0) & (place_K < unit_VRD.shape[0] * images)).flatten()
    image_K = torch.full_like(place_K, -1)
    image_K[mine] = place_K[mine] % images
    label_K = queue.labels(part.start, part.stop)
    expected = host_label_R[image_K[mine]].to(device)
    image_K, place, mine = image_K.to(device), place_K[mine].to(device), mine.to(device)
    same_RK = label_R[:, None] == label_K[None, :]
    of_itself_RK = torch.arange(images, device=device)[:, None] == image_K[None, :]
    sums = [(label_K[mine] != expected).sum()]
    for kind in kinds:
        unit_KD = F.normalize(queue.features(part.start, part.stop, proxies, as_stored=kind == STORED))
        cosine_RK = unit_VRD[0] @ unit_KD.T
        for wanted_RK in (same_RK & ~of_itself_RK, ~same_RK):
            sums += [(cosine_RK * wanted_RK).sum(dtype=torch.float64), wanted_RK.sum()]
        now = unit_VRD.flatten(0, 1)[place]
        sums += [(now * unit_KD[mine]).sum(dtype=torch.float64), torch.tensor(len(mine), device=device)]
        original = place >= images  # views after the first
        query = unit_VRD[0][place[original] % images]
        sums += [(query * unit_KD[mine[original]]).sum(dtype=torch.float64), original.sum()]
    return torch.stack([value.double() for value in sums])
