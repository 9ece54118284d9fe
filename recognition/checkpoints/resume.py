"""Whether a run may resume from, or write to, an output folder."""

from __future__ import annotations

from pathlib import Path

from recognition.checkpoints import store
from utils.config import Config
from utils.errors import UserError

# Keys that the state depends on. Everything else, and the number of ranks, may change when a run resumes.
_MUST_MATCH = (
    "network",
    "embedding_size",
    "map_norm",
    "num_classes",
    "num_image",
    "batch_size",  # of all ranks together
    "views",
    "gradient_acc",
    "seed",
    "optimizer",
    "queue",
    "queue_size",
    "sample_rate",
    "unsampled_rows",
)


def refuse_changed_settings(folder: Path, config: Config, world_size: int) -> None:
    """UserError, with both values, if a checkpoint was written with other settings that its state depends on."""
    saved = store.read_config(folder)
    for key in _MUST_MATCH:
        before, now = getattr(saved, key), getattr(config, key)
        if key == "batch_size":
            before, now = store.read_state(folder)["global_batch"], now * world_size
        if before != now:
            raise UserError(
                f"{folder}: was written with {key}={before!r}, this run has {key}={now!r}; use the same, or another "
                "output= (init_from= starts a new run from its encoder)"
            )


def refuse_used_output(output: Path) -> None:
    """UserError if a new run would mix its checkpoints with those of an earlier one."""
    if old := store.complete_checkpoints(output):
        raise UserError(
            f"{output}: holds {old[0].name} of an earlier run, and resume=False would mix the two; set another output=, "
            "or remove the checkpoints"
        )
