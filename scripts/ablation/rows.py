"""The rows of the tables: those of the paper and the controls."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from utils.config import Config, load
from utils.errors import UserError

FORMS = ("lfw", "vgg2_r34")
LONGEST_NAME = 255  # of a folder: what file systems allow


@dataclass(frozen=True)
class Row:
    """A line of a table.

    config: a configuration file, as a path or without the form: "qg" is configs/FORM_qg. changes: `key=value` arguments.
    """

    name: str
    config: str
    changes: tuple[str, ...] = ()

    def run_name(self, form: str, seed: int) -> str:
        """The name of the run's folder: the configuration, what is changed in it, and the seed. The end of a long list of changes
        is replaced by its checksum."""
        end = f"-s{seed}"
        name = self._file(form).stem + "".join(f"-{re.sub(r'[^A-Za-z0-9.=]+', '_', change)}" for change in self.changes)
        if len(name + end) > LONGEST_NAME:
            end = f"-{hashlib.blake2b(' '.join(self.changes).encode(), digest_size=6).hexdigest()}{end}"
            name = name[: LONGEST_NAME - len(end)]
        return name + end

    def arguments(self, form: str) -> list[str]:
        """The configuration file and `key=value` arguments for train.py."""
        return [str(self._file(form)), *self.changes]

    def load(self, form: str, overrides: list[str]) -> Config:
        """The checked configuration, with further `key=value` arguments."""
        file, *changes = self.arguments(form)
        return load(file, [*changes, *overrides])

    def _file(self, form: str) -> Path:
        return Path(self.config) if "/" in self.config else Path("configs") / f"{form}_{self.config}"


def parse_row(text: str) -> Row:
    """A row from 'NAME: CONFIG [key=value …]'."""
    name, colon, rest = text.partition(":")
    config, *changes = rest.split() or [""]
    if not (colon and config) or any("=" not in change for change in changes):
        raise UserError(f"--row {text!r}: expected 'NAME: CONFIG [key=value …]', such as 'b = 0.4: configs/lfw_qg lr=0.2'")
    return Row(name.strip(), config, tuple(changes))


_INFONCE = "contrastive_denominator=infonce"

TABLES: dict[str, list[Row]] = {
    "I": [
        Row("Baseline", "baseline"),
        Row("A", "a"),
        Row("B", "b"),
        Row("C", "c"),
        Row("D", "d"),
        Row("D, both views", "d_both"),  # the paper does not state which of the two D is
        Row("E", "qg"),
    ],
    "II": [
        Row("queue: no", "queue_none"),
        Row("queue: batch", "queue_batch"),
        Row("queue: momentum", "queue_momentum"),
        Row("queue: proxy-updated", "qg"),
    ],
    "III": [
        Row("b: no", "threshold_none"),
        Row("b = 0.1", "threshold_01"),
        Row("b = 0.2", "qg"),
        Row("b = 0.3", "threshold_03"),
    ],
    "controls": [
        Row("D", "d"),
        Row("D, both views", "d_both"),
        Row("E", "qg"),
        Row("queue: momentum, both views", "queue_momentum", ("momentum_views=both",)),
        Row("E, target: the better view", "qg", ("contrastive_target=better",)),
        Row("E, by views", "qg", ("partition=views",)),
        Row("E, by views, infonce", "qg", ("partition=views", _INFONCE)),
        Row("b: no, infonce", "threshold_none", (_INFONCE,)),
        Row("b: no, infonce, lambda = 0.1", "threshold_none", (_INFONCE, "contrastive_weight=0.1")),
        Row("b: no, infonce, gradient through the key", "threshold_none", (_INFONCE, "contrastive_stop_gradient=False")),
        Row("b = 0.3, infonce", "threshold_03", (_INFONCE,)),
        Row("b = 0.3, queue of 3,831", "threshold_03", ("queue_size=3831",)),
        Row("b = 0.3, mean over the selected", "threshold_03", ("loss_average=selected",)),
        Row("b = 0.3, warm-up of 4 epochs", "threshold_03", ("partition_warmup_epoch=4",)),
        Row("b = 0.2, c = 1", "qg", ("quality_concentration=1.0",)),
        Row("mu = 20, sigma = 100 at first", "qg", ("quality_mean=20.0", "quality_std=100.0")),
    ],
    "own": [],  # only the rows given by --row
}
