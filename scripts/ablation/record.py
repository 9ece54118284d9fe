"""RUN/ablation.json: the settings and benchmarks of a run, so that a run with other settings is not mistaken for it.

`request`: the settings that bear on the trained encoder; `data_root`, `all_pairs`: the benchmarks of RUN/eval.json.
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
SETTINGS, DATA_ROOT, ALL_PAIRS = "request", "data_root", "all_pairs"

# Keys that do not change the trained encoder: what a run prints and saves, when and where.
_WITHOUT_EFFECT = {
    *("output", "num_workers", "frequent", "diagnose_every", "verbose", "save_every", "save_minutes", "keep_last", "keep_best"),
    *("async_save", "resume", "timeout_minutes", "val_targets", "val_dir", "val_batch_size", "verify_share"),
}


def settings_of(config: Config, processes: int) -> dict[str, Any]:
    """The settings of a run as JSON stores them, before the data set fills in counts that are left to it."""
    settings = {key: value for key, value in dataclasses.asdict(config).items() if key not in _WITHOUT_EFFECT}
    paths = [str(Path(path).resolve()) for path in config.data_sets]
    return json.loads(json.dumps({**settings, "rec": paths[0] if len(paths) == 1 else paths, "--nproc": processes}))


def refuse_other_settings(folder: Path, settings: Mapping[str, Any]) -> None:
    """Raise UserError, with both values, if the run in this folder, finished or not, has other settings."""
    before = read_record(folder).get(SETTINGS, {})
    for key, value in settings.items():
        if key in before and before[key] != value:
            raise UserError(
                f"{folder}: this run has {key}={before[key]!r}, the table asks for {key}={value!r}; remove the run, or use "
                "another --output"
            )


def read_record(folder: Path) -> dict[str, Any]:
    """The record in a run's folder; {} if there is none. Raises UserError if it cannot be read."""
    path = folder / FILE
    try:
        return dict(json.loads(path.read_bytes())) if path.is_file() else {}
    except (OSError, ValueError, TypeError) as fault:
        raise UserError(f"{path}: cannot be read ({fault}); remove the run, or use another --output") from fault


def add_to_record(folder: Path, key: str, value: object) -> None:
    """Set one key of the record in a run's folder."""
    write_file(folder / FILE, json.dumps({**read_record(folder), key: value}, indent=1) + "\n", parents=True)
