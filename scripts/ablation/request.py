"""What a run of a table was asked for, kept in its folder, so that a run made with other settings is not taken for this one.

RUN/ablation.json: `request`, what bears on the encoder that is trained; `data_root`, the benchmarks of RUN/eval.json.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from utils.config import Config
from utils.errors import UserError
from utils.files import write_file

FILE = "ablation.json"

# What a run may have otherwise and still be the same: what it tells and saves, how often and where.
_OF_NO_EFFECT = {
    "output", "num_workers", "frequent", "diagnose_every", "verbose", "save_every", "save_minutes", "keep_last", "keep_best",
    "async_save", "resume", "timeout_minutes", "val_targets", "val_dir", "val_batch_size",
}  # fmt: skip


def request_of(config: Config, processes: int) -> dict[str, Any]:
    """The request as its file gives it back. config: as asked for, before the data set fills in what was left to it."""
    asked = {key: value for key, value in dataclasses.asdict(config).items() if key not in _OF_NO_EFFECT}
    return json.loads(json.dumps({**asked, "rec": str(Path(config.rec).resolve()), "--nproc": processes}))


def refuse_other_request(folder: Path, request: Mapping[str, Any]) -> None:
    """UserError where the run of this folder, finished or not, was asked for with other settings, naming both values."""
    before = recorded(folder).get("request", {})
    for key, now in request.items():
        if key in before and before[key] != now:
            raise UserError(
                f"{folder}: was made with {key}={before[key]!r}, and is now asked for with {key}={now!r}; remove it, or use "
                "another --output"
            )


def recorded(folder: Path) -> dict[str, Any]:
    """What the folder's file says; {} where there is none. UserError where it cannot be read."""
    path = folder / FILE
    try:
        return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}
    except (OSError, ValueError, TypeError) as fault:
        raise UserError(f"{path}: cannot be read ({fault}); remove the run, or use another --output") from fault


def record(folder: Path, **what: object) -> None:
    """Add to what is recorded. A reader sees the old or the new content, never a part."""
    folder.mkdir(exist_ok=True)
    write_file(folder / FILE, json.dumps(recorded(folder) | what, indent=1) + "\n")
