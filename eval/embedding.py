"""Features of encoded images, computed on all ranks, and verification on .bin sets.

The encoder is a function that the caller passes in. Each rank embeds a contiguous slice of the images. Threads decode the next
batches while the encoder works on the current one, and the rows are gathered in order.

Shapes: N images, n images in a batch, D embedding.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from eval.verification import TenFold, judge_set, load_bin
from utils.dist import gather_objects, gather_uneven_rows, on_first_rank, shard_range
from utils.errors import UserError
from utils.images import decode_face

Embed = Callable[[torch.Tensor], torch.Tensor]
"""uint8 RGB [n, 112, 112, 3] on the CPU -> float32 raw features [n, D] on the CPU. The function takes care of channel order,
normalisation, device and evaluation mode."""

MergeFlip = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Two float32 [n, D], features of the images and of their mirror images -> [n, any]; `torch.add` for the usual sum."""

_DECODING_THREADS = 2  # batches decoded ahead; decoders release the interpreter's lock

# -------------------------------------------------------------------------------------------------- embedding


def embed_images(
    embed: Embed, encoded: Sequence[bytes], batch_size: int, flip: bool = True, describe: str = "images"
) -> np.ndarray:
    """Embed encoded 112x112 images: float32 [N, D], f(x) + f(flipped x), or f(x) alone without `flip`.

    Called on all ranks with the same images; returns all rows on all ranks. If an image cannot be decoded, raises UserError on
    all ranks, with `describe` and the image's index.
    """

    def load(index: int) -> np.ndarray:
        return decode_face(encoded[index], f"{describe}, image {index}")

    return embed_items(embed, load, len(encoded), batch_size, torch.add if flip else None, describe)


def embed_items(
    embed: Embed,
    load: Callable[[int], np.ndarray],
    count: int,
    batch_size: int,
    merge_flip: MergeFlip | None = None,
    describe: str = "images",
) -> np.ndarray:
    """Embed images 0..count-1, each read by `load(index)` -> uint8 RGB [112, 112, 3] in a decoding thread.

    `merge_flip` combines the features of the images and of their mirror images; without it, mirror images are not embedded.
    Returns float32 [count, D] on all ranks. A UserError of `load` on any rank is raised on all; so are features that are not
    finite.
    """
    if count == 0:
        raise UserError(f"{describe}: there are no images to embed")
    mine = shard_range(count)
    # A rank without a slice embeds one image all the same: it needs D to take part in the gathering.
    start, stop = (mine.start, mine.stop) if mine.size else (0, 1)
    rows, problem = torch.empty(0), ""
    try:
        rows = torch.cat([_features(embed, batch, merge_flip) for batch in decoded_batches(load, start, stop, batch_size)])
        if not rows.isfinite().all():
            bad = start + int(rows.isfinite().all(dim=1).int().argmin())
            problem = f"{describe}: the features of image {bad} are not finite; check the encoder's weights"
    except UserError as error:
        problem = str(error)
    problems = [text for text in gather_objects(problem) if text]
    if problems:
        raise UserError(problems[0])
    return gather_uneven_rows(rows[: mine.size]).numpy()


def _features(embed: Embed, images: np.ndarray, merge_flip: MergeFlip | None) -> torch.Tensor:
    batch = torch.from_numpy(images)
    with torch.no_grad():
        rows = embed(batch)
        if merge_flip is not None:
            rows = merge_flip(rows, embed(batch.flip(2)))
    assert rows.dtype == torch.float32 and rows.device.type == "cpu" and rows.ndim == 2 and len(rows) == len(batch)
    return rows


def decoded_batches(load: Callable[[int], np.ndarray], start: int, stop: int, batch_size: int) -> Iterator[np.ndarray]:
    """Batches uint8 [n, 112, 112, 3] in order, a few of them decoded ahead by threads."""

    def load_batch(first: int) -> np.ndarray:
        return np.stack([load(index) for index in range(first, min(first + batch_size, stop))])

    pool = ThreadPoolExecutor(_DECODING_THREADS)
    ahead: deque[Future[np.ndarray]] = deque()
    try:
        for first in range(start, stop, batch_size):
            ahead.append(pool.submit(load_batch, first))
            if len(ahead) > _DECODING_THREADS:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


# -------------------------------------------------------------------------------------------------- checks in advance


def check_images(count: int, load: Callable[[int], object]) -> None:
    """Try `load(index)` for images 0..count-1, divided over the ranks. Its first UserError on any rank is raised on all."""
    _raise_on_all(_first_problem(count, load))


def check_bins(bins: Mapping[str, str | Path]) -> dict[str, list[str]]:
    """Check verification sets, name -> path, before hours of work: open, count and decode them, and judge them without features.

    Returns the names of each set's metrics. UserError, on all ranks: one line per set that cannot be used.
    """
    metrics, problems = {}, []
    for name, path in bins.items():
        try:
            encoded, issame = load_bin(path)
            metrics[name] = list(judge_set(name, np.ones((len(encoded), 1)), issame).metrics())
        except UserError as error:
            problems.append(str(error))
            continue

        def decode(index: int, encoded: list[bytes] = encoded, path: str | Path = path) -> object:
            return decode_face(encoded[index], f"{path}, image {index}")

        problems += filter(None, [_first_problem(len(encoded), decode)])
    _raise_on_all(*problems)
    return metrics


def _first_problem(count: int, load: Callable[[int], object]) -> str:
    """The first UserError of `load(index)` among this rank's share of the images, or ""."""

    def problem(index: int) -> str:
        try:
            load(index)
        except UserError as error:
            return str(error)
        return ""

    mine = shard_range(count)
    with ThreadPoolExecutor(_DECODING_THREADS) as pool:
        return next(filter(None, pool.map(problem, range(mine.start, mine.stop))), "")


def _raise_on_all(*problems: str) -> None:
    """Raise the problems of all ranks as a UserError on all ranks; each once."""
    found = dict.fromkeys(text for each in gather_objects(problems) for text in each if text)
    if found:
        raise UserError(*found)


# -------------------------------------------------------------------------------------------------- verification sets


def verify_bins(
    embed: Embed,
    bins: Mapping[str, str | Path],
    batch_size: int,
    on_result: Callable[[str, TenFold], None] | None = None,
) -> dict[str, dict[str, float]]:
    """Verify on .bin sets, name -> path. Returns name -> `TenFold.metrics()`, the same on all ranks.

    All ranks embed. Rank 0 computes the metrics and calls `on_result` with each set's name and full result (for plots).
    UserErrors are raised on all ranks and begin with the set's name or path.
    """
    results = {}
    for name, path in bins.items():
        encoded, issame = load_bin(path)
        embeddings = embed_images(embed, encoded, batch_size, describe=name)

        def judge(name: str = name, embeddings: np.ndarray = embeddings, issame: np.ndarray = issame) -> dict[str, float]:
            outcome = judge_set(name, embeddings, issame)
            if on_result is not None:
                on_result(name, outcome)
            return outcome.metrics()

        results[name] = on_first_rank(judge)
    return results
