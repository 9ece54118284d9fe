"""Identification: search of probes in a gallery, ranks, false and true positive identification rates.

Results are exact in float64, at nearly the speed of float32: products are formed in float32, and those whose largest possible
rounding error leaves an order uncertain are formed again in float64. A tie between a mate and another person counts against the
mate, so an encoder that maps all faces to the same feature identifies nobody.

Shapes: P probes, G gallery entries, D embedding. Features are normalised here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from utils.errors import UserError

_PROBES_AT_ONCE, _GALLERY_AT_ONCE = 1024, 2048
_THREADS = 2
_MAX_UNCERTAIN = 0.02  # share of a block's products; beyond it, forming all of them in float64 is faster
NOBODY = -np.inf
NEVER = np.iinfo(np.int64).max  # rank of a mate that cannot be found


@dataclass(frozen=True)
class Search:
    """The result for each probe. A mate is a gallery entry with the probe's identity.

    closed_set: every probe should have a mate, so one without counts as a failure at every rank. Otherwise rates are over the
    mated probes.
    """

    mate_score: np.ndarray  # float64 [P], cosine with the most similar mate; -inf if there is none
    other_score: np.ndarray  # float64 [P], cosine with the most similar entry of another identity; -inf if there is none
    rank: np.ndarray  # int64 [P], rank of the best mate, from 1; 0 without a mate; NEVER if it or the probe has no features
    closed_set: bool = False

    @property
    def mated(self) -> np.ndarray:
        """bool [P], whether the gallery contains the probe's identity."""
        return self.rank > 0

    @property
    def counted(self) -> int:
        """The number of probes over which rank rates are averaged."""
        return len(self.rank) if self.closed_set else int(self.mated.sum())

    def with_failures(self, count: int) -> Search:
        """This search with `count` more probes, as a closed set: probes that are missing and count as not found at any rank."""
        unknown = np.full(count, NOBODY)
        mate_score, other_score = (np.append(scores, unknown) for scores in (self.mate_score, self.other_score))
        return Search(mate_score, other_score, np.append(self.rank, np.zeros(count, np.int64)), closed_set=True)

    def rank_rate(self, rank: int) -> float:
        """Share (0..1) of the counted probes with a mate among the first `rank`. Raises UserError if no probe is mated."""
        self._require_mated()
        return int((self.rank[self.mated] <= rank).sum()) / self.counted

    def cmc(self, most: int) -> np.ndarray:
        """Cumulative match characteristic: `rank_rate` of 1..most, float64 [most]."""
        self._require_mated()
        counts = np.bincount(self.rank[self.mated].clip(max=most + 1), minlength=most + 2)[1:-1]
        return np.cumsum(counts) / self.counted

    def tpir(self, fpir: float) -> float:
        """True positive identification rate at the lowest threshold with a false positive identification rate of at most `fpir`.

        This is the share of mated probes whose mate scores above the threshold (at any rank), where at most a share `fpir` of
        the probes without mates scores above it with anyone. Raises UserError without mated or without unmated probes.
        """
        strangers, allowed = self._strangers(fpir)
        threshold = strangers[allowed] if allowed < len(strangers) else NOBODY
        return float((self.mate_score[self.mated] > threshold).mean())

    def detection_rate(self, fpir: float) -> float:
        """Detection and identification rate at rank 1, as public evaluations of IJB-S compute it.

        This is the share of mated probes whose mate has rank 1 and scores at least as high as the n-th highest of the scores of
        probes without mates, where n is `fpir` times their number, rounded down; if n is 0, higher than all of them. Raises
        UserError without mated or without unmated probes.
        """
        strangers, allowed = self._strangers(fpir)
        accepted = self.mate_score >= strangers[allowed - 1] if allowed else self.mate_score > strangers[0]
        return float((accepted & (self.rank == 1))[self.mated].mean())

    def _strangers(self, fpir: float) -> tuple[np.ndarray, int]:
        """The highest score of each probe without a mate, descending, and how many of them may be accepted."""
        self._require_mated()
        strangers = np.sort(self.other_score[~self.mated])[::-1]
        if len(strangers) == 0:
            raise UserError("FPIR needs probes whose identity is not in the gallery; there are none")
        return strangers, math.floor(fpir * len(strangers) + 1e-9)  # 0.29 x 100 is 28.999…

    def _require_mated(self) -> None:
        if not self.mated.any():
            raise UserError("no probe has a mate in the gallery; take the identities of both from the same list")


def normalised(features: np.ndarray, describe: str) -> np.ndarray:
    """Rows of length 1, float64 [N, D]; a row of zeros stays. Raises UserError, naming `describe` and row, if not finite."""
    rows = np.asarray(features)
    if rows.ndim != 2 or len(rows) == 0:
        raise UserError(f"{describe}: features of shape {rows.shape}; expected [images, size]")
    rows = rows.astype(np.float64)
    lengths = np.sqrt(np.einsum("nd,nd->n", rows, rows))
    if not np.isfinite(lengths).all():
        raise UserError(f"{describe}: the feature in row {int(np.argmin(np.isfinite(lengths)))} is not finite")
    rows /= np.where(lengths == 0, 1.0, lengths)[:, None]
    return rows


def search(
    probes_PD: np.ndarray,
    probe_ids: np.ndarray,
    gallery_GD: np.ndarray,
    gallery_ids: np.ndarray,
    describe: str = "search",
    closed_set: bool = False,
) -> Search:
    """Search every probe in the gallery. Features are raw, of any float type; ids are integers [P], [G].

    closed_set: a probe without a mate counts as a failure.

    Beyond the normalised features, memory holds one block of products per thread. Raises UserError for features that are not
    finite and for mismatched shapes.
    """
    probes, gallery = normalised(probes_PD, f"{describe}, probes"), normalised(gallery_GD, f"{describe}, gallery")
    probe_ids, gallery_ids = np.asarray(probe_ids), np.asarray(gallery_ids)
    if probes.shape[1] != gallery.shape[1] or len(probes) != len(probe_ids) or len(gallery) != len(gallery_ids):
        raise UserError(
            f"{describe}: {probes.shape} probes with {len(probe_ids)} ids, {gallery.shape} gallery with {len(gallery_ids)} ids"
        )
    mates = _mates(probe_ids, gallery_ids)
    mate_score = _best_mates(probes, gallery, *mates)
    above, other_score = np.zeros(len(probes), np.int64), np.full(len(probes), NOBODY)
    probes_f32, gallery_f32 = probes.astype(np.float32), gallery.astype(np.float32)

    def scan(first: int) -> None:
        rows = slice(first, min(first + _PROBES_AT_ONCE, len(probes)))
        inside = slice(*np.searchsorted(mates[0], (rows.start, rows.stop)))
        own = mates[0][inside] - first, mates[1][inside]
        _scan(probes[rows], probes_f32[rows], gallery, gallery_f32, mate_score[rows], own, above[rows], other_score[rows])

    with ThreadPoolExecutor(_THREADS) as pool:  # one thread's comparisons overlap the other's products
        list(pool.map(scan, range(0, len(probes), _PROBES_AT_ONCE)))
    mated = mate_score > NOBODY
    return Search(mate_score, other_score, np.where(mated, above + 1, 0), closed_set)


def _mates(probe_ids: np.ndarray, gallery_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All pairs (probe, gallery entry) of the same identity, by ascending probe."""
    order = np.argsort(gallery_ids, kind="stable")
    ordered = gallery_ids[order]
    start, stop = np.searchsorted(ordered, probe_ids, "left"), np.searchsorted(ordered, probe_ids, "right")
    counts = stop - start
    probe = np.repeat(np.arange(len(probe_ids)), counts)
    within = np.arange(len(probe)) - np.repeat(np.cumsum(counts) - counts, counts)
    return probe, order[np.repeat(start, counts) + within]


def _best_mates(probes: np.ndarray, gallery: np.ndarray, probe: np.ndarray, entry: np.ndarray) -> np.ndarray:
    best = np.full(len(probes), NOBODY)
    np.maximum.at(best, probe, _dots(probes, gallery, probe, entry))
    return best


def _dots(probes: np.ndarray, gallery: np.ndarray, i: np.ndarray, j: np.ndarray) -> np.ndarray:
    """Cosines of the listed pairs, in float64."""
    products = np.empty(len(i))
    for start in range(0, len(i), 4096):
        part = slice(start, start + 4096)
        products[part] = np.einsum("nd,nd->n", probes[i[part]], gallery[j[part]])
    return products


def _scan(
    probes: np.ndarray,
    probes_f32: np.ndarray,
    gallery: np.ndarray,
    gallery_f32: np.ndarray,
    mate_score: np.ndarray,
    mates: tuple[np.ndarray, np.ndarray],
    above: np.ndarray,
    other_score: np.ndarray,
) -> None:
    """Adds to `above` the number of other people's entries that score as high as the best mate, and updates `other_score`."""
    # By Cauchy-Schwarz, the rounding error of a product of two unit vectors is below (D + 4) half-units in the last place.
    error = np.float32((probes.shape[1] + 4) * 2.0**-24)
    lowest = mate_score - (probes.shape[1] + 4) * 2.0**-53  # an entry that reaches this ties with the mate or exceeds it
    mate_f32 = np.where(mate_score > NOBODY, mate_score, np.inf).astype(np.float32)  # unreachable without a mate
    for first in range(0, len(gallery), _GALLERY_AT_ONCE):
        block = slice(first, min(first + _GALLERY_AT_ONCE, len(gallery)))
        inside = (mates[1] >= block.start) & (mates[1] < block.stop)
        own = mates[0][inside], mates[1][inside] - first
        products = probes_f32 @ gallery_f32[block].T
        products[own] = NOBODY
        best = products.max(axis=1)
        raising = np.flatnonzero((best >= other_score - error) & (best > NOBODY))
        row, j = np.nonzero(products[raising] >= (best[raising] - 2 * error)[:, None])
        reaching = np.flatnonzero(products >= (mate_f32 - error)[:, None])
        i = reaching // products.shape[1]
        certain = products.reshape(-1)[reaching] > (mate_f32 + error)[i]
        if len(row) + len(i) - np.count_nonzero(certain) > _MAX_UNCERTAIN * products.size:
            exact = probes @ gallery[block].T  # the encoder hardly distinguishes faces
            exact[own] = NOBODY
            above += np.count_nonzero(exact >= lowest[:, None], axis=1)
            np.maximum(other_score, exact.max(axis=1), out=other_score)
            continue
        np.maximum.at(other_score, raising[row], _dots(probes, gallery, raising[row], j + first))
        above += np.bincount(i[certain], minlength=len(probes))
        i, j = i[~certain], reaching[~certain] % products.shape[1]
        np.add.at(above, i, _dots(probes, gallery, i, j + first) >= lowest[i])


def search_metrics(found: Search, ranks: Sequence[int], fpirs: Sequence[float] = ()) -> dict[str, float]:
    """`rankN` for each rank, `tpir@fpir=F` for each FPIR (rates 0..1), and the numbers of mated and unmated probes."""
    metrics: dict[str, float] = {f"rank{rank}": found.rank_rate(rank) for rank in ranks}
    metrics.update({f"tpir@fpir={fpir:g}": found.tpir(fpir) for fpir in fpirs})
    return {**metrics, "mated_probes": int(found.mated.sum()), "unmated_probes": int((~found.mated).sum())}


# -------------------------------------------------------------------------------------------------- the pooled variant


def require_one_mate(probe_ids: np.ndarray, gallery_ids: np.ndarray) -> None:
    """Raise UserError unless each probe's identity is in the gallery exactly once."""
    mates = np.bincount(_mates(probe_ids, gallery_ids)[0], minlength=len(probe_ids))
    if (mates != 1).any():
        probe = int(np.argmax(mates != 1))
        raise UserError(f"subject {probe_ids[probe]} of the probes occurs {mates[probe]} times in both galleries; expected once")


def pooled_metrics(
    found: Search,
    probes_PD: np.ndarray,
    probe_ids: np.ndarray,
    gallery_GD: np.ndarray,
    gallery_ids: np.ndarray,
    ranks: Sequence[int],
    fars: Sequence[float],
) -> dict[str, float]:
    """The figures of insightface's `ijb_1n`: both galleries as one, with one mate per probe. `found` is the search in it.

    Its "far" is not an FPIR: the threshold is the ceil(far x P)-th highest of ALL P x (G - 1) scores with other people, and the
    rate is the share of probes whose mate scores above it. Raises UserError if a probe does not have exactly one mate.
    """
    require_one_mate(probe_ids, gallery_ids)
    wanted = [math.ceil(far * len(probe_ids)) for far in fars]
    highest = _highest_other_scores(probes_PD, probe_ids, gallery_GD, gallery_ids, max(wanted))
    if len(highest) < max(wanted):
        raise UserError(f"{len(highest)} comparisons with other people are too few for a FAR of {max(fars):g}")
    metrics: dict[str, float] = {f"pooled_rank{rank}": found.rank_rate(rank) for rank in ranks}
    for far, place in zip(fars, wanted, strict=True):
        metrics[f"pooled_tpr@far={far:g}"] = float((found.mate_score > highest[place - 1]).mean())
    return metrics


def _highest_other_scores(
    probes_PD: np.ndarray, probe_ids: np.ndarray, gallery_GD: np.ndarray, gallery_ids: np.ndarray, count: int
) -> np.ndarray:
    """The `count` highest cosines (float64) between probes and entries of other identities, in descending order."""
    probes, gallery = normalised(probes_PD, "probes"), normalised(gallery_GD, "gallery")
    highest = np.empty(0)
    for first in range(0, len(probes), _PROBES_AT_ONCE):
        products = probes[first : first + _PROBES_AT_ONCE] @ gallery.T
        others = products[probe_ids[first : first + _PROBES_AT_ONCE, None] != gallery_ids]
        if len(highest) == count:
            others = others[others > highest.min()]
        highest = np.concatenate([highest, others])
        if len(highest) > count:
            highest = np.partition(highest, len(highest) - count)[-count:]
    return np.sort(highest)[::-1]
