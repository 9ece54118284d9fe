"""Hooks of the documentation site: the README is its first page."""

from __future__ import annotations

import re
from pathlib import Path

from mkdocs.structure.files import File

_ROOT = Path(__file__).parent.parent
_LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!https?:|#)([^)]+)\)")


def on_files(files, config):
    files.append(File.generated(config, "index.md", content=_readme()))
    return files


def _readme() -> str:
    """The README with links relative to docs/; a link to another file of the repository becomes that file's name."""

    def rewrite(link: re.Match[str]) -> str:
        mark, text, target = link.groups()
        if target.startswith("docs/"):
            return f"{mark}[{text}]({target.removeprefix('docs/')})"
        return text if text != target else f"`{text}`"

    return _LINK.sub(rewrite, (_ROOT / "README.md").read_text(encoding="utf-8"))
