"""Feed damaged files to every reader: record files, indices, .bin sets, images, configurations, feature files, weights,
checkpoints, lists.

    python benchmarks/fuzz.py                      # 60,000 inputs, a few minutes
    python benchmarks/fuzz.py --quick              # 4,000 inputs, under a minute
    python benchmarks/fuzz.py --only bin rec --count 100000 --seed 7

Every input is a small sound file with random damage (bits, bytes, numbers, cuts, copies, splices). A reader may accept it or
refuse it with a `UserError`. Anything else is a finding: another exception, a crash of the process, more than 10 s of
processor time, more than 2 GiB. Findings are written to --findings; once fixed, they belong in tests/fuzz_seeds. Exits 0 only
if there are none.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.fuzz_targets import TARGETS, Target  # noqa: E402 - a script, run in place

SECONDS, BYTES = 10, 2 << 30  # limits on processor time and address space
_NUMBERS = (0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 0x80000000, 0xCED7230A, 1 << 29, 3 << 29)


def damaged(content: bytes, others: list[bytes], generator: random.Random) -> bytes:
    """A sound file with one to four kinds of damage."""
    data = bytearray(content)
    for _ in range(generator.choice((1, 1, 1, 2, 4))):
        generator.choice(_DAMAGES)(data, others, generator)
    return bytes(data)


def _place(data: bytearray, generator: random.Random) -> int:
    # Half of the damage goes to the beginning, where formats keep their structure.
    end = len(data) if generator.random() < 0.5 else min(len(data), 200)
    return generator.randrange(max(end, 1))


def _flip(data: bytearray, others: list[bytes], generator: random.Random) -> None:
    if data:
        data[_place(data, generator)] ^= 1 << generator.randrange(8)


def _byte(data: bytearray, others: list[bytes], generator: random.Random) -> None:
    if data:
        data[_place(data, generator)] = generator.randrange(256)


def _number(data: bytearray, others: list[bytes], generator: random.Random) -> None:
    at, size = _place(data, generator) & ~3, generator.choice((1, 2, 4, 8))
    value = generator.choice(_NUMBERS) & ((1 << 8 * size) - 1)
    data[at : at + size] = value.to_bytes(size, generator.choice(("little", "big")))


def _digits(data: bytearray, others: list[bytes], generator: random.Random) -> None:
    """Replace a digit in text with another number."""
    places = [at for at in range(len(data)) if 48 <= data[at] <= 57][:500]
    if places:
        at = generator.choice(places)
        data[at : at + 1] = generator.choice((b"-1", b"0", b"9" * 20, b"1e999", b"NaN", b"", b"18446744073709551615"))


def _cut(data: bytearray, others: list[bytes], generator: random.Random) -> None:
    del data[_place(data, generator) :]


def _remove(data: bytearray, others: list[bytes], generator: random.Random) -> None:
    at = _place(data, generator)
    del data[at : at + generator.randrange(1, 40)]


def _copy(data: bytearray, others: list[bytes], generator: random.Random) -> None:
    at, to = _place(data, generator), _place(data, generator)
    data[to:to] = data[at : at + generator.randrange(1, 200)]


def _splice(data: bytearray, others: list[bytes], generator: random.Random) -> None:
    other = generator.choice(others)
    at = _place(data, generator)
    data[at:] = other[min(at, len(other)) :]


_DAMAGES = (_flip, _flip, _byte, _number, _number, _digits, _cut, _remove, _copy, _splice)


@dataclass
class Finding:
    target: str
    what: str
    content: bytes


class TooSlowError(Exception):
    """A reader took too long."""


def _alarm(*_: object) -> None:
    raise TooSlowError


def verdict(target: Target, content: bytes) -> str:
    """What went wrong; empty if the input is accepted or properly refused."""
    from utils.errors import UserError

    signal.signal(signal.SIGVTALRM, _alarm)
    signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
    try:
        target.read(content)
    except UserError as refusal:
        good = refusal.args and all(problem and "\n" not in problem for problem in refusal.args)
        return "" if good else f"a refusal that is not one line per problem: {refusal!r}"
    except TooSlowError:
        return f"took more than {SECONDS} s"
    except Exception:  # noqa: BLE001 - any other exception is a finding
        return traceback.format_exc(limit=-4)
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    return ""


def _fuzz_some(name: str, seed: int, first: int, stop: int, folder: str, results: Any) -> None:
    """Inputs first..stop-1 of a target, in a separate process. Keeps the current one in `folder`, in case the process crashes."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # decoders print a warning per damaged image
    target = TARGETS[name](Path(folder))
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + BYTES, used + BYTES))
    current = Path(folder) / "current"
    for number in range(first, stop):
        generator = random.Random(f"{seed} {name} {number}")
        content = damaged(generator.choice(target.seeds), target.seeds, generator)
        current.write_bytes(content)
        what = verdict(target, content)
        results.send((number, what))
    results.send((stop, ""))


def fuzz(name: str, count: int, seed: int) -> list[Finding]:
    """Feed `count` inputs to a target; after a crash, another process continues with the next input."""
    findings: list[Finding] = []
    context = multiprocessing.get_context("fork")
    number = 0
    while number < count:
        with tempfile.TemporaryDirectory() as folder:
            here, there = context.Pipe(duplex=False)
            process = context.Process(target=_fuzz_some, args=(name, seed, number, count, folder, there))
            process.start()
            there.close()
            try:
                while number < count:
                    number, what = here.recv()
                    if what:
                        findings.append(Finding(name, what, _again(name, seed, number)))
            except EOFError:
                process.join()
                content = (Path(folder) / "current").read_bytes() if (Path(folder) / "current").exists() else b""
                findings.append(Finding(name, f"the process ended with {process.exitcode} after input {number}", content))
                number += 2
            process.join()
    return findings


def _again(name: str, seed: int, number: int) -> bytes:
    """Input `number`, created again."""
    with tempfile.TemporaryDirectory() as folder:
        seeds = TARGETS[name](Path(folder)).seeds
    generator = random.Random(f"{seed} {name} {number}")
    return damaged(generator.choice(seeds), seeds, generator)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=60_000, help="total number of inputs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=TARGETS, default=list(TARGETS))
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--findings", type=Path, default=Path("runs/fuzz"))
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    count = 4_000 if arguments.quick else arguments.count
    table, total = {}, 0
    for name in arguments.only:
        began = time.monotonic()
        share = max(1, count // len(arguments.only))
        findings = fuzz(name, share, arguments.seed)
        kinds = {finding.what.strip().splitlines()[-1].partition(":")[0]: finding for finding in findings}
        table[name] = {"inputs": share, "findings": len(findings), "seconds": round(time.monotonic() - began, 1)}
        print(f"{name:12} {share:>7} inputs  {len(findings):>4} findings  {table[name]['seconds']:>6} s", flush=True)
        for number, (kind, finding) in enumerate(kinds.items()):
            arguments.findings.mkdir(parents=True, exist_ok=True)
            path = arguments.findings / f"{name}-{number}"
            path.write_bytes(finding.content)
            print(f"  {path}: {kind}\n{finding.what}")
        total += len(findings)
    if arguments.json:
        arguments.json.write_text(json.dumps({"seed": arguments.seed, "targets": table}, indent=1) + "\n")
    print("no findings" if not total else f"{total} findings in {arguments.findings}")
    return int(total > 0)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
