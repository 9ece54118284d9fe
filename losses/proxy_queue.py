"""The real-time queue of features that follows the classifier's proxies (QGFace, section III-C).

A strict global first-in-first-out of the last Q features. Entry e holds its feature h_e, its label y_e and its class's
proxy (classifier row) at the time it was enqueued. The encoder has moved on since; the proxy tells how far:

    h'_e = h_e + (||h_e|| / ||w_then||) (w_now - w_then)        (normalised afterwards, by whoever compares)

A rank keeps the entries whose label lies in its class shard, so w_now is local. All ranks see the same gathered features
in the same order; every entry carries its global sequence number, and what is older than the last Q is dropped.

Nothing here waits for the GPU: labels are known on the host, so counts and positions are plain integers. A training step that
is found unfit afterwards takes back what it enqueued (`begin_step`, `undo_step`): what a step drops stays in place until the
next one begins, so that to take back is to set the counters.

Shapes: N features a step, K = entries of this rank, D embedding.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from utils.dist import ShardRange, exchange_rows, rank_and_world, shard_range, sum_over_ranks
from utils.transfer import to_device

Proxies = Callable[[torch.Tensor], torch.Tensor]
"""Current classifier rows of labels owned by this rank: int64 [K] (on the device) -> float32 [K, D]."""


class FeatureQueue(nn.Module):
    """The last `size` features of the world; this rank's part, in a ring that grows when its share does.

    `compensate=False` gives a plain queue (no proxies kept). `one_step=True` keeps the newest step's features alone: the batch
    itself, also where it has fewer features than `size` because records could not be read.
    """

    def __init__(self, size: int, embedding_size: int, classes: ShardRange, compensate: bool = True, one_step: bool = False):
        super().__init__()
        if size < 1:
            raise ValueError(f"a queue holds at least one feature, not {size}")
        self.size, self.dim, self.classes, self.compensate = size, embedding_size, classes, compensate
        self.one_step, self._oldest = one_step, 0
        self.total = 0  # features ever enqueued by the world = the next sequence number
        self._head = self._count = 0
        self._mark: tuple[int, int, int] | None = None  # total, oldest, count where the step began
        self._held = 0  # entries just before the head, dropped in this step but kept in place
        share = classes.size / max(classes.total, 1)
        self._allocate(int(size * share * 1.1) + 64, torch.device("cpu"))

    def _allocate(self, capacity: int, device: torch.device) -> None:
        rows = (capacity, self.dim)
        self._feature = torch.zeros(rows, device=device)
        self._proxy = torch.zeros(rows if self.compensate else (0, self.dim), device=device)
        self._label = torch.zeros(capacity, dtype=torch.int64, device=device)
        self._sequence = torch.zeros(capacity, dtype=torch.int64)  # stays on the host

    def _apply(self, fn, recurse=True):
        """`.to(device)` for storage that is no buffer, because its size differs by rank and time."""
        super()._apply(fn, recurse)
        self._feature, self._proxy, self._label = fn(self._feature), fn(self._proxy), fn(self._label)
        return self

    def __len__(self) -> int:
        """K, the entries that this rank holds."""
        return self._count

    @property
    def filled(self) -> int:
        """The entries that the world holds, at most `size`."""
        return self.total - self._oldest

    @property
    def capacity(self) -> int:
        return self._label.shape[0]

    def _slots(self, start: int, stop: int) -> torch.Tensor:
        """Places in the ring of entries start..stop, oldest first; int64, on the host. Entry -1 is the one dropped last."""
        return (torch.arange(start, stop) + self._head) % self.capacity

    def _device_slots(self, start: int, stop: int) -> torch.Tensor:
        """The same, on the device."""
        return (torch.arange(start, stop, device=self._label.device) + self._head) % self.capacity

    # -------------------------------------------------------------------------------------------- write

    def begin_step(self) -> None:
        """From here on, until it is called again, `undo_step` can take everything back."""
        self._mark, self._held = (self.total, self._oldest, self._count), 0

    def undo_step(self) -> None:
        """Makes the queue what it was at `begin_step`."""
        assert self._mark is not None, "no step has begun"
        self.total, self._oldest, self._count = self._mark
        self._head = (self._head - self._held) % self.capacity
        self._held = 0

    @torch.no_grad()
    def enqueue(self, feature_ND: torch.Tensor, host_label_N: torch.Tensor, proxies: Proxies) -> None:
        """Appends the step's gathered features (raw, not normalised) in their order, and drops what is too old.

        feature_ND: float32 on the device, equal on all ranks. host_label_N: int64 on the CPU.
        """
        first = self.total
        self.total += host_label_N.numel()
        oldest = max(first if self.one_step else 0, self.total - self.size)
        self._drop_before(oldest, at_most=oldest - self._oldest)
        self._oldest = oldest
        sequence_N = torch.arange(first, self.total)
        chosen = torch.nonzero(self.classes.owns(host_label_N) & (sequence_N >= oldest)).flatten()
        chosen_device = to_device(chosen, feature_ND.device)
        label_K = to_device(host_label_N[chosen], feature_ND.device)
        proxy_KD = proxies(label_K) if self.compensate else None
        self._append(feature_ND.detach().float()[chosen_device], label_K, proxy_KD, sequence_N[chosen])

    def _drop_before(self, oldest: int, at_most: int) -> None:
        """Forgets this rank's entries with a sequence number below `oldest`: `at_most` so many."""
        if self._count:
            sequence_K = self._sequence[self._slots(0, min(at_most, self._count))]
            gone = int(torch.searchsorted(sequence_K, oldest))
            self._head = (self._head + gone) % self.capacity
            self._count -= gone
            self._held += gone if self._mark is not None else 0

    def _append(self, feature_KD, label_K, proxy_KD, sequence_K) -> None:
        count = self._count + len(sequence_K)
        if self._held + count > self.capacity:
            self._grow(self._held + count)
        self._sequence[self._slots(self._count, count)] = sequence_K
        slots = self._device_slots(self._count, count)
        self._feature[slots] = feature_KD
        self._label[slots] = label_K
        if proxy_KD is not None:
            self._proxy[slots] = proxy_KD
        self._count = count

    def _grow(self, needed: int) -> None:
        """More room, when this rank's share of the last Q features grows: the queue stays strict."""
        old_feature, old_proxy, old_label, old_sequence = self._feature, self._proxy, self._label, self._sequence
        held, kept = self._held, self._held + self._count
        slots, device_slots = self._slots(-held, self._count), self._device_slots(-held, self._count)
        in_step = 0 if self._mark is None else self.total - self._mark[0]
        self._allocate(min(max(needed, 2 * self.capacity), max(self.size + in_step, needed)), old_feature.device)
        self._sequence[:kept] = old_sequence[slots]
        self._feature[:kept] = old_feature[device_slots]
        self._label[:kept] = old_label[device_slots]
        if self.compensate:
            self._proxy[:kept] = old_proxy[device_slots]
        self._head = held

    # -------------------------------------------------------------------------------------------- read

    def labels(self, start: int, stop: int) -> torch.Tensor:
        """Labels of this rank's entries start..stop, oldest first: int64."""
        return self._label[self._device_slots(start, stop)]

    def sequence(self, start: int, stop: int) -> torch.Tensor:
        """Sequence numbers of this rank's entries start..stop, oldest first: int64, on the host. The world's newest entry has
        number `total` - 1."""
        return self._sequence[self._slots(start, stop)]

    @torch.no_grad()
    def features(self, start: int, stop: int, proxies: Proxies, as_stored: bool = False) -> torch.Tensor:
        """Features of this rank's entries start..stop, compensated for drift (unless wanted `as_stored`) but NOT normalised:
        float32 [K, D]."""
        slots = self._device_slots(start, stop)
        feature_KD = self._feature[slots]
        if as_stored or not self.compensate:
            return feature_KD
        then_KD = self._proxy[slots]
        ratio_K1 = feature_KD.norm(dim=1, keepdim=True) / then_KD.norm(dim=1, keepdim=True).clamp_min(1e-12)
        return feature_KD + ratio_K1 * (proxies(self._label[slots]) - then_KD)

    # -------------------------------------------------------------------------------------------- state

    @torch.no_grad()
    def global_rows(self) -> dict[str, torch.Tensor]:
        """The world's entries, oldest first, cut into contiguous parts: this rank's part (`shard_range(filled)`) of
        `feature`, `proxy`, `label`. The same for any number of ranks, so that a checkpoint fits them all. Collective."""
        slots = self._slots(0, self._count)
        sequence_K = self._sequence[slots]
        _, world = rank_and_world()
        part = shard_range(self.filled)
        step = max(shard_range(self.filled, 0).size, 1)
        owner_K = (sequence_K - (self.total - self.filled)) // step
        counts = torch.bincount(owner_K, minlength=world).tolist()
        order = exchange_rows(sequence_K, counts).argsort()  # entries arrive by sender; sort them by age
        device_slots = self._device_slots(0, self._count)
        rows = {"feature": self._feature, "label": self._label}
        if self.compensate:
            rows["proxy"] = self._proxy
        result = {name: exchange_rows(value[device_slots].cpu(), counts)[order] for name, value in rows.items()}
        assert len(order) == part.size, f"{len(order)} queue entries for a part of {part.size}"
        return result

    @torch.no_grad()
    def load_global_rows(self, rows: dict[str, torch.Tensor], total: int) -> None:
        """The inverse of `global_rows`, for any number of ranks. Collective."""
        _, world = rank_and_world()
        filled = int(sum_over_ranks(torch.tensor([len(rows["label"])])).item())
        first = total - filled + shard_range(filled).start
        sequence = torch.arange(first, first + len(rows["label"]))
        owner = rows["label"] // max(shard_range(self.classes.total, 0).size, 1)
        order = owner.argsort(stable=True)
        counts = torch.bincount(owner, minlength=world).tolist()
        mine = {name: exchange_rows(value[order], counts) for name, value in rows.items()}
        sequence = exchange_rows(sequence[order], counts)  # senders hold increasing ranges: already oldest first
        self.total, self._oldest, self._head, self._count = total, total - filled, 0, 0
        self._mark, self._held = None, 0
        device = self._feature.device
        proxy = mine["proxy"].to(device) if self.compensate else None
        self._append(mine["feature"].to(device), mine["label"].to(device), proxy, sequence)
