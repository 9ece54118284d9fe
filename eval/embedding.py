"""From encoded images to features, on all ranks, and from .bin sets to verification figures.

The encoder is a function that is handed in; this module decides only which images it gets and when. Each rank embeds a
contiguous slice, a few threads decode the next batches while the encoder works on this one, and the rows are put
together in order.

Shapes: N images, n images of a batch, D embedding, V = 2 views (as it is, flipped).
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch

from eval.verification import TenFold, load_bin, ten_fold
from utils.dist import gather_uneven_rows, rank_and_world, shard_range
from utils.errors import UserError
from utils.images import decode_face

Embed = Callable[[torch.Tensor], torch.Tensor]
"""uint8 RGB [n, 112, 112, 3] on the CPU -> float32 raw features [n, D] on the CPU. Channel order, normalisation, device
and evaluation mode are the function's own business."""

MergeFlip = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Two float32 [n, D], features of the images and of their mirror images -> [n, any]: `torch.add` for the usual sum."""

_DECODING_THREADS = 2  # batches decoded ahead; OpenCV decodes without holding the interpreter's lock

# -------------------------------------------------------------------------------------------------- embedding


def embed_images(
    embed: Embed, encoded: Sequence[bytes], batch_size: int, flip: bool = True, describe: str = "images"
) -> np.ndarray:
    """Features of encoded 112x112 images: float32 [N, D], f(x) + f(flipped x), or f(x) alone without `flip`.

    Called on all ranks with the same images; returns all rows on all ranks. Raises UserError, naming `describe` and the
    image's index, on all ranks where an image of any of them cannot be decoded.
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
    """Features of images 0..count-1, each made by `load(index)` -> uint8 RGB [112, 112, 3] in a decoding thread.

    `merge_flip` joins the features of the images and of their mirror images; None: no mirror images are embedded.
    Returns float32 [count, D] on all ranks. A UserError of `load` on any rank is raised on all.
    """
    if count == 0:
        raise UserError(f"{describe}: there are no images to embed")
    mine = shard_range(count)
    # A rank without a slice embeds one image all the same: it has to know D to take part in the gathering.
    start, stop = (mine.start, mine.stop) if mine.size else (0, 1)
    rows, problem = torch.empty(0), ""
    try:
        rows = torch.cat([_features(embed, batch, merge_flip) for batch in _batches(load, start, stop, batch_size)])
    except UserError as error:
        problem = str(error)
    problems = [text for text in _share_text(problem) if text]
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


def _batches(load: Callable[[int], np.ndarray], start: int, stop: int, batch_size: int) -> Iterator[np.ndarray]:
    """uint8 [n, 112, 112, 3] in order, decoded ahead by a few threads; never more than a few batches at a time."""

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


# -------------------------------------------------------------------------------------------------- verification sets


def verify_bins(
    embed: Embed,
    bins: Mapping[str, str | Path],
    batch_size: int,
    on_result: Callable[[str, TenFold], None] | None = None,
) -> dict[str, dict[str, float]]:
    """Verifies on .bin sets, name -> path: returns name -> `TenFold.metrics()`, the same on all ranks.

    All ranks embed; the metric is computed once, on rank 0, which also calls `on_result` with each set's name and full
    result (for plots). UserErrors are raised on all ranks and begin with the set's name or path.
    """
    results = {}
    for name, path in bins.items():
        encoded, issame = load_bin(path)
        embeddings = embed_images(embed, encoded, batch_size, describe=name)
        results[name] = _on_first_rank(partial(_judge, name, embeddings, issame, on_result))
    return results


def _judge(
    name: str, embeddings: np.ndarray, issame: np.ndarray, on_result: Callable[[str, TenFold], None] | None
) -> dict[str, float]:
    try:
        result = ten_fold(embeddings, issame)
        metrics = result.metrics()
    except UserError as error:
        raise UserError(f"{name}: {error}") from error
    if on_result is not None:
        on_result(name, result)
    return metrics


def _on_first_rank(compute: Callable[[], dict[str, float]]) -> dict[str, float]:
    """What `compute` returns or complains of on rank 0, on all ranks; the others do not run it."""
    answer = ""
    if rank_and_world()[0] == 0:
        try:
            answer = json.dumps({"value": compute()})  # floats survive JSON to the bit
        except UserError as error:
            answer = json.dumps({"error": str(error)})
    answered = json.loads(_share_text(answer)[0])
    if "error" in answered:
        raise UserError(answered["error"])
    return answered["value"]


def _share_text(text: str) -> list[str]:
    """Each rank's text (without NUL), in rank order, on all ranks."""
    rows = torch.frombuffer(bytearray(text.encode() + b"\0"), dtype=torch.uint8)
    return gather_uneven_rows(rows).numpy().tobytes().decode().split("\0")[:-1]
