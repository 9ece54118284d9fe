"""The proxy-updated real-time queue of features (QGFace, section III-C).

A strict global first-in-first-out of the last Q features. Entry e holds its feature h_e, its label and its class's proxy (the
classifier row) at the time of enqueuing. The encoder has changed since; the proxy's movement compensates for it:

    h'_e = h_e + (||h_e|| / ||w_then||) (w_now - w_then)        (normalised afterwards, by the loss)

Each rank keeps the entries whose label lies in its class shard, so w_now is local. An entry without a class, of unlabelled
image i (label `UNLABELLED` - i), has no proxy and is compared as it is stored; rank i mod W keeps it. All ranks see the same
gathered features in the same order; every entry has a global sequence number, and entries older than the last Q are dropped.

Nothing waits for the GPU: labels are known on the host, so counts and positions are plain integers. A training step that turns
out to be unusable takes back what it enqueued (`begin_step`, `undo_step`): entries that a step drops stay in place until the
next one begins, so taking back only resets counters.

Shapes: N features per step, K entries of this rank, D embedding.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from utils.dist import ShardRange, exchange_rows, rank_and_world, shard_range, sum_over_ranks
from utils.labels import UNLABELLED
from utils.transfer import to_device

Proxies = Callable[[torch.Tensor], torch.Tensor]
"""Current classifier rows of labels that this rank owns: int64 [n] on the device -> float32 [n, D]."""

_NO_PROXIES = "drift compensation needs the current proxies"


class FeatureQueue(nn.Module):
    """This rank's part of the last `size` features of all ranks, in a ring buffer that grows if needed.

    classes: this rank's class shard. compensate: keep proxies and correct for drift. one_step: keep the features of the newest
    step alone, also if they are fewer than `size` because records could not be read. Raises ValueError if size < 1.

    >>> import torch
    >>> from utils import dist
    >>> queue = FeatureQueue(size=3, embedding_size=2, classes=dist.shard_range(10))
    >>> weight = torch.ones(10, 2)
    >>> queue.enqueue(torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([4, 7]), lambda label: weight[label])
    >>> weight[4] = torch.tensor([1.0, 2.0])  # the proxy of class 4 moves
    >>> queue.labels(0, 2), queue.features(0, 2, lambda label: weight[label])
    (tensor([4, 7]), tensor([[1.0000, 0.7071],
            [0.0000, 2.0000]]))
    """

    def __init__(self, size: int, embedding_size: int, classes: ShardRange, compensate: bool = True, one_step: bool = False):
        super().__init__()
        if size < 1:
            raise ValueError(f"the queue's size must be at least 1, not {size}")
        self.size, self.dim, self.classes, self.compensate = size, embedding_size, classes, compensate
        self.one_step, self._oldest = one_step, 0
        self._has_unlabelled = False  # whether an entry without a class was ever on this rank
        self.total = 0  # features ever enqueued by all ranks = the next sequence number
        self._head = self._count = 0
        self._mark: tuple[int, int, int] | None = None  # total, oldest, count at the start of the step
        self._held = 0  # entries before the head that this step dropped but that are still in place
        share = classes.size / max(classes.total, 1)
        self._allocate(int(size * share * 1.1) + 64)

    def _allocate(self, capacity: int, device: torch.device | None = None) -> None:
        rows = (capacity, self.dim)
        self._feature = torch.zeros(rows, device=device)
        self._proxy = torch.zeros(rows if self.compensate else (0, self.dim), device=device)
        self._label = torch.zeros(capacity, dtype=torch.int64, device=device)
        self._sequence = torch.zeros(capacity, dtype=torch.int64)  # stays on the host

    def _apply(self, fn, recurse=True):
        """`.to(device)` for the storage, which is not a buffer because its size differs by rank and time."""
        super()._apply(fn, recurse)
        self._feature, self._proxy, self._label = fn(self._feature), fn(self._proxy), fn(self._label)
        return self

    def __len__(self) -> int:
        """K, the number of entries on this rank."""
        return self._count

    @property
    def filled(self) -> int:
        """The number of entries on all ranks, at most `size`."""
        return self.total - self._oldest

    @property
    def capacity(self) -> int:
        return self._label.shape[0]

    def _slots(self, start: int, stop: int) -> torch.Tensor:
        """Positions in the ring of entries start..stop, oldest first: int64, on the host. Entry -1 was dropped last."""
        return (torch.arange(start, stop) + self._head) % self.capacity

    def _device_slots(self, start: int, stop: int) -> torch.Tensor:
        """`_slots`, on the device."""
        return (torch.arange(start, stop, device=self._label.device) + self._head) % self.capacity

    # -------------------------------------------------------------------------------------------- write

    def begin_step(self) -> None:
        """Mark the state to which `undo_step` returns."""
        self._mark, self._held = (self.total, self._oldest, self._count), 0

    def undo_step(self) -> None:
        """Return to the state at `begin_step`."""
        assert self._mark is not None, "no step has begun"
        self.total, self._oldest, self._count = self._mark
        self._head = (self._head - self._held) % self.capacity
        self._held = 0

    @torch.no_grad()
    def enqueue(self, feature_ND: torch.Tensor, host_label_N: torch.Tensor, proxies: Proxies | None) -> None:
        """Append the step's gathered features in their order, and drop what is too old.

        feature_ND: raw features (not normalised), float32 on the device, equal on all ranks. host_label_N: int64 on the CPU.
        proxies: may be None if the queue does not compensate.
        """
        first = self.total
        self.total += host_label_N.numel()
        oldest = max(first if self.one_step else 0, self.total - self.size)
        self._drop_before(oldest, at_most=oldest - self._oldest)
        self._oldest = oldest
        sequence_N = torch.arange(first, self.total)
        rank, _ = rank_and_world()
        chosen = torch.nonzero((self._owners(host_label_N) == rank) & (sequence_N >= oldest)).flatten()
        chosen_device = to_device(chosen, feature_ND.device)
        label_K = to_device(host_label_N[chosen], feature_ND.device)
        self._has_unlabelled |= bool((host_label_N[chosen] < 0).any())
        proxy_KD = self._proxies(label_K, proxies) if self.compensate else None
        self._append(feature_ND.detach().float()[chosen_device], label_K, proxy_KD, sequence_N[chosen])

    def _owners(self, label_N: torch.Tensor) -> torch.Tensor:
        """The ranks that keep entries with these labels: int64 [N]."""
        _, world = rank_and_world()
        classes_per_rank = max(shard_range(self.classes.total, 0).size, 1)
        return torch.where(label_N >= 0, label_N // classes_per_rank, (UNLABELLED - label_N) % world)

    def _proxies(self, label_K: torch.Tensor, proxies: Proxies | None) -> torch.Tensor:
        """Current proxies of entries of this rank, 0 for those without a class: float32 [K, D]."""
        assert proxies is not None, _NO_PROXIES
        if not self._has_unlabelled:
            return proxies(label_K)
        if not self.classes.size:
            return torch.zeros(len(label_K), self.dim, device=label_K.device)
        return torch.where(label_K[:, None] >= 0, proxies(label_K.clamp_min(self.classes.start)), 0.0)

    def _drop_before(self, oldest: int, at_most: int) -> None:
        """Drop this rank's entries with a sequence number below `oldest`, of which there are at most `at_most`."""
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
        """Enlarge the ring for `needed` entries, because this rank's share of the last Q features has grown."""
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
        """Labels of this rank's entries start..stop, oldest first: int64 on the device."""
        return self._label[self._device_slots(start, stop)]

    def sequence(self, start: int, stop: int) -> torch.Tensor:
        """Sequence numbers of this rank's entries start..stop, oldest first: int64 on the host. The newest entry of all ranks
        has number `total` - 1."""
        return self._sequence[self._slots(start, stop)]

    @torch.no_grad()
    def features(self, start: int, stop: int, proxies: Proxies | None, as_stored: bool = False) -> torch.Tensor:
        """Features of this rank's entries start..stop, oldest first, NOT normalised: float32 [n, D].

        They are compensated for drift, unless `as_stored` or the queue does not compensate, or they have no class.
        """
        slots = self._device_slots(start, stop)
        feature_KD = self._feature[slots]
        if as_stored or not self.compensate:
            return feature_KD
        then_KD = self._proxy[slots]
        ratio_K1 = feature_KD.norm(dim=1, keepdim=True) / then_KD.norm(dim=1, keepdim=True).clamp_min(1e-12)
        return feature_KD + ratio_K1 * (self._proxies(self._label[slots], proxies) - then_KD)

    # -------------------------------------------------------------------------------------------- state

    @torch.no_grad()
    def global_rows(self) -> dict[str, torch.Tensor]:
        """This rank's contiguous part, `shard_range(filled)`, of all ranks' entries, oldest first: `feature`, `label` and, if
        the queue compensates, `proxy`, on the CPU. The whole does not depend on the number of ranks, so checkpoints fit any
        number. Collective."""
        slots = self._slots(0, self._count)
        sequence_K = self._sequence[slots]
        _, world = rank_and_world()
        part = shard_range(self.filled)
        step = max(shard_range(self.filled, 0).size, 1)
        owner_K = (sequence_K - (self.total - self.filled)) // step
        counts = torch.bincount(owner_K, minlength=world).tolist()
        order = exchange_rows(sequence_K, counts).argsort()  # entries arrive by sender; sort them by age
        rows = {"feature": self._feature, "label": self._label}
        if self.compensate:
            rows["proxy"] = self._proxy
        result = {name: exchange_rows(value.cpu()[slots], counts)[order] for name, value in rows.items()}
        assert len(order) == part.size, f"{len(order)} queue entries for a part of {part.size}"
        return result

    @torch.no_grad()
    def load_global_rows(self, rows: dict[str, torch.Tensor], total: int) -> None:
        """Restore what `global_rows` returned, on any number of ranks. rows: this rank's part. total: the saved `total`.
        Collective."""
        _, world = rank_and_world()
        filled = int(sum_over_ranks(torch.tensor([len(rows["label"])])).item())
        first = total - filled + shard_range(filled).start
        sequence = torch.arange(first, first + len(rows["label"]))
        owner = self._owners(rows["label"])
        order = owner.argsort(stable=True)
        counts = torch.bincount(owner, minlength=world).tolist()
        mine = {name: exchange_rows(value[order], counts) for name, value in rows.items()}
        sequence = exchange_rows(sequence[order], counts)  # senders hold increasing ranges: already oldest first
        self.total, self._oldest, self._head, self._count = total, total - filled, 0, 0
        self._mark, self._held = None, 0
        self._has_unlabelled = bool((mine["label"] < 0).any())
        device = self._feature.device
        proxy = mine["proxy"].to(device) if self.compensate else None
        self._append(mine["feature"].to(device), mine["label"].to(device), proxy, sequence)
