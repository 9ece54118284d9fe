"""Who may import whom (docs/ARCHITECTURE.md), who may talk to other ranks, and how long things may get."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import pytest

from tests.shared_files import ROOT

PACKAGES = ("recognition", "backbones", "losses", "eval", "utils")
MAY_IMPORT = {
    "recognition": {"backbones", "losses", "eval", "utils"},
    "losses": {"utils"},
    "eval": {"utils"},
    "backbones": set(),
    "utils": set(),
}
IMPORTED_AS = {  # where it is not the package's name
    "faiss_cpu": "faiss", "mkdocs_material": "mkdocs", "nvidia_dali_cuda120": "nvidia", "opencv_python_headless": "cv2",
    "pillow": "PIL", "scikit_image": "skimage",
}  # fmt: skip
COMMANDS = ("eval/__main__.py", "eval/commands/")  # commands put packages together; no other module of eval/ imports them
TOP_LEVEL = {
    *(*PACKAGES, "configs", "scripts", "tests", "benchmarks", "docs", "requirements"),
    *("train.py", "run.sh", "requirements.txt", "pyproject.toml", "mkdocs.yml", "LICENSE"),
    *("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "CITATION.cff"),
}
MOST_FILES = 15  # in a package folder


def _modules() -> list[Path]:
    return [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]


def _imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            found |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", _modules(), ids=_name)
def test_imports_follow_the_rule(path):
    package = _name(path).split("/")[0]
    foreign = {name.split(".")[0] for name in _imports(path)} & set(PACKAGES) - {package}
    if _name(path).startswith(COMMANDS):
        assert foreign <= {"recognition", "utils"}
    else:
        assert not any(name.startswith("eval.commands") for name in _imports(path)), f"{_name(path)} imports a command"
        assert foreign <= MAY_IMPORT[package], f"{_name(path)} may import {MAY_IMPORT[package]}, not {foreign}"


@pytest.mark.parametrize("path", [path for path in _modules() if _name(path).startswith("backbones/")], ids=_name)
def test_backbones_depend_on_torch_only(path):
    outside = {name.split(".")[0] for name in _imports(path)} - {"torch", "backbones", "safetensors"}
    outside -= set(sys.stdlib_module_names)
    assert not outside, f"{_name(path)} imports {outside}"


@pytest.mark.parametrize("path", _modules(), ids=_name)
def test_only_two_modules_talk_to_other_ranks(path):
    talks = {name for name in _imports(path) if name in ("torch.distributed", "torch.distributed.dist")}
    if _name(path) not in ("utils/dist.py", "utils/process_group.py"):
        assert not talks, f"{_name(path)} imports torch.distributed; use utils.dist"


@pytest.mark.parametrize("folder", sorted({path.parent for path in _modules()}), ids=_name)
def test_no_folder_holds_too_many_files(folder):
    files = [path.name for path in folder.glob("*.py") if path.name != "__init__.py"]
    assert len(files) <= MOST_FILES, f"{_name(folder)} holds {len(files)} files: give a subject of its own a folder of its own"


@pytest.mark.parametrize("path", [path for path in _modules() if not path.name.startswith("__")], ids=_name)
def test_the_map_names_every_module(path):
    text = (ROOT / "docs/ARCHITECTURE.md").read_text(encoding="utf-8")
    assert re.search(rf"\b{re.escape(path.name)}\b", text), f"docs/ARCHITECTURE.md does not mention {_name(path)}"


def test_train_py_is_short_and_holds_no_logic():
    assert len((ROOT / "train.py").read_text().splitlines()) < 80


def _pinned(path: Path) -> dict[str, str]:
    """Module -> version, of a requirements file."""
    lines = [line.split("#")[0].strip() for line in path.read_text().splitlines()]
    pins = dict(re.fullmatch(r"([\w-]+)(?:\[\w+\])?==([\w.]+)", line).groups() for line in lines if line)
    return {IMPORTED_AS.get(name, name): version for name, version in ((key.replace("-", "_"), pins[key]) for key in pins)}


def test_every_imported_package_is_pinned():
    """In requirements.txt; or, if it is optional, in one of requirements/, which the error then names."""
    needed = _pinned(ROOT / "requirements.txt")
    extras = {f"requirements/{path.name}": _pinned(path) for path in (ROOT / "requirements").iterdir()}
    paths = [*_modules(), *(path for folder in ("scripts", "benchmarks", "docs") for path in (ROOT / folder).rglob("*.py"))]
    imported = {name.split(".")[0] for path in paths for name in _imports(path)}
    own = {*PACKAGES, "configs", "scripts", "benchmarks", "tests", *sys.stdlib_module_names}
    assert imported - own <= {*needed, *(name for pins in extras.values() for name in pins)}
    asked = {match for path in paths for match in re.findall(r'require\("(\w+)", "([\w/.]+)"', path.read_text())}
    assert {name for name, _ in asked} >= {"timm", "wandb", "mlflow"}
    assert all(package in {"requirements.txt": needed, **extras}[file] for package, file in asked)
    assert all(pins.get("torch", needed["torch"]) == needed["torch"] for pins in extras.values())
    listed = {file for page in (*ROOT.glob("docs/*.md"), *paths, ROOT / "run.sh") for file in extras if file in page.read_text()}
    assert listed == set(extras), "each requirements file is named where it is needed"


def test_the_top_level_is_as_agreed():
    made_by_runs = {"runs", "data", "site"}
    present = {path.name for path in ROOT.iterdir() if not path.name.startswith((".", "__"))}
    assert present - made_by_runs <= TOP_LEVEL
