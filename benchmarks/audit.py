"""Memory and time of `pack audit` for large sets, with synthetic features.

    python -m benchmarks.audit                            # 100,000 and a million images: a few minutes, 0.6 GB of temporary files
    python -m benchmarks.audit --images 20000 40000       # quick
    python -m benchmarks.audit --faiss                    # pairs by faiss, all of them
    python -m benchmarks.audit --json figures.json

Identities have 100 images; one image in a thousand has a copy. Each size runs in its own process. Memory is the peak of what the
process has allocated ("anonymous" memory, read from the kernel): pages of the feature file, which the system can reclaim at any
time, do not count. Comparing all pairs visits blocks of constant size, so the benchmark measures its first rows and states the
time for all. Everything else runs in full: suspects, split and merged identities.
"""

from __future__ import annotations

from utils import program

if __name__ == "__main__":
    program.begin()  # before the imports that take seconds

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import torch
from prettytable import PrettyTable

from eval.protocols import products
from eval.protocols.products import product_blocks
from recognition.data.pack.commands.audit import duplicates
from recognition.data.pack.commands.audit.approximate import approximate_pairs
from recognition.data.pack.commands.audit.evidence import FEATURES, HASHES, THUMBNAILS, Evidence
from recognition.data.pack.commands.audit.faces import Faces
from recognition.data.pack.commands.audit.search import Audit
from utils.errors import exit_on_user_error
from utils.files import write_file

PER_IDENTITY, CHUNK = 100, 20_000
MIB = 1 << 20


def write_evidence(folder: Path, images: int, size: int) -> None:
    """Features of identities with noise, as `collect` writes them, in bounded memory."""
    features = np.lib.format.open_memmap(folder / FEATURES, "w+", np.float16, (images, size))
    thumbnails = np.lib.format.open_memmap(folder / THUMBNAILS, "w+", np.uint8, (images, 16, 16))
    for start in range(0, images, CHUNK):
        rng = np.random.default_rng(start)
        count = min(CHUNK, images - start)
        centres = rng.standard_normal((count // PER_IDENTITY, size), np.float32)
        rows = np.repeat(centres, PER_IDENTITY, axis=0) + 0.8 * rng.standard_normal((count, size), np.float32)
        rows[::1000] = rows[1::1000]
        features[start : start + count] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        thumbnails[start : start + count] = rng.integers(0, 256, (count, 16, 16), np.uint8)
        thumbnails[start : start + count : 1000] = thumbnails[start + 1 : start + count : 1000]
    hashes = np.arange(2 * images, dtype=np.uint64).reshape(images, 2)
    np.save(folder / HASHES, hashes)


class Labels:
    """Stands for the data set: labels alone."""

    path = Path("synthetic")

    def __init__(self, images: int):
        self._labels = np.arange(images) // PER_IDENTITY

    def __len__(self) -> int:
        return len(self._labels)

    def labels(self) -> np.ndarray:
        return self._labels


class AnonymousMemory:
    """The largest anonymous memory of this process while the block runs, in bytes."""

    def __enter__(self) -> AnonymousMemory:
        self.peak, self._done = 0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._done.wait(0.02):
            self.peak = max(self.peak, anonymous())

    def __exit__(self, *error: object) -> None:
        self._done.set()
        self._thread.join()


def anonymous() -> int:
    """Bytes of anonymous memory of this process."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024


def measure(folder: Path, seconds: float, faiss: bool) -> dict[str, float]:
    """Audit the evidence in `folder`; of the comparison of all pairs, only the rows that fit into `seconds`."""
    hashes = np.load(folder / HASHES, mmap_mode="r", allow_pickle=False)
    faces: Faces = Labels(len(hashes))  # type: ignore[assignment]
    before = anonymous()
    done: list[float] = [0, 0.0]  # rows and seconds of all pairs

    def first_rows(rows, columns=None, *rest, **options):  # in the place of `product_blocks`
        if columns is not None or len(rows) != len(hashes):
            yield from product_blocks(rows, columns, *rest, **options)
            return
        started, last_row = time.perf_counter(), 0
        for block in product_blocks(rows, columns, *rest, **options):
            if block.row != last_row and time.perf_counter() - started > seconds:
                done[:] = [block.row, time.perf_counter() - started]
                return
            last_row = block.row
            yield block
        done[:] = [len(rows), time.perf_counter() - started]

    def timed_pairs(*rest, **options):  # in the place of `approximate_pairs`
        started = time.perf_counter()
        found = approximate_pairs(*rest, **options)
        done[:] = [len(hashes), time.perf_counter() - started]
        return found

    products.product_blocks, duplicates.approximate_pairs = first_rows, timed_pairs
    with AnonymousMemory() as memory:
        started = time.perf_counter()
        audit = Audit(Evidence.load(faces, folder), torch.device("cpu"), 1, {"near_cosine": 0.9}, faiss)
        audit.run([])
        total = time.perf_counter() - started
    images, compared = len(hashes), done[0]
    share = 1 - (1 - compared / images) ** 2  # of the pairs: the first rows have the most
    return {
        "images": images,
        "memory_mib": (memory.peak - before) / MIB,
        "pairs_share": share,
        "all_pairs_seconds": done[1] / share,
        "rest_seconds": total - done[1],
        "copies": sum(finding.kind == "near" for finding in audit.findings),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--size", type=int, default=128, help="numbers per feature (%(default)s)")
    parser.add_argument("--seconds", type=float, default=20, help="for the comparison of all pairs (%(default)s)")
    parser.add_argument("--faiss", action="store_true", help="let faiss find the pairs of images")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.measure, arguments.seconds, arguments.faiss)))
        return
    table = PrettyTable(
        ["images", "memory, MiB", "all pairs, s", "of which measured, %", "the rest, s", "copies found"], align="r"
    )
    results = []
    for images in arguments.images:
        with tempfile.TemporaryDirectory() as folder:
            write_evidence(Path(folder), images, arguments.size)
            command = [sys.executable, "-m", "benchmarks.audit", "--measure", folder, "--seconds", str(arguments.seconds)]
            command += ["--faiss"] * arguments.faiss
            found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
        results.append(found)
        share = 100 * found["pairs_share"]
        figures = (found["memory_mib"], found["all_pairs_seconds"], share, found["rest_seconds"], found["copies"])
        table.add_row([f"{images:,}", *(f"{figure:,.0f}" for figure in figures)])
    print(table)
    if arguments.json:
        write_file(arguments.json, json.dumps(results, indent=1))


if __name__ == "__main__":
    exit_on_user_error(main)
