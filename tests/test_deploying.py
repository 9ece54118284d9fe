"""The version, and the files of scripts/deploy/ as far as they can be checked without a container engine."""

from __future__ import annotations

import re

import pytest

import train
from recognition import __version__
from tests.shared_files import ROOT


def test_one_version(capsys):
    """In the program, the change log and the citation."""
    with pytest.raises(SystemExit) as end:
        train._options(["--version"])
    assert (end.value.code, capsys.readouterr().out) == (0, f"{__version__}\n")
    assert re.search(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[1] == __version__
    assert re.search(r"^version: (.+)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)[1] == __version__
