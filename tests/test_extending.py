"""The examples of docs/EXTENDING.md work as they are printed, from a folder outside the repository; mistakes are named."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
import torch

from recognition.build import build_margin, build_partition
from recognition.data.augment import recipe
from recognition.encoders.build import build_encoder
from recognition.encoders.load import load_encoder
from recognition.monitor.hooks import Hooks
from tests.commands import run
from tests.shared_files import ROOT
from utils import plugins
from utils.config import from_base, load
from utils.errors import UserError

PAGE = (ROOT / "docs/EXTENDING.md").read_text(encoding="utf-8")
EXAMPLES = dict(re.findall(r'```python title="([^"]+)"\n(.*?)```', PAGE, flags=re.DOTALL))


@pytest.fixture(scope="module")
def outside(tmp_path_factory) -> Path:
    """A folder outside the repository with the examples."""
    folder = tmp_path_factory.mktemp("outside")
    assert set(EXAMPLES) == {"my_parts.py", "my_config.py", "my_commands/similarity.py"}
    for name, text in EXAMPLES.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    return folder


def _run(folder: Path, *arguments: str, code: int = 0) -> str:
    done = run(sys.executable, *arguments, PYTHONPATH=str(folder))
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout if code == 0 else done.stderr


def test_train_resume_evaluate_and_export_with_the_examples(outside, demo_set):
    """One run uses all parts; the command evaluates it, and the published folder is opened again."""
    output, bins = outside / "run", str(demo_set / "demo_hq.bin")
    keys = (f"rec={demo_set}", "val_targets=('demo_hq',)", f"output={output}", "batch_size=8", "num_workers=1")
    train = ("train.py", str(outside / "my_config.py"), *keys, "precision=fp32", "diagnose_every=2", "frequent=1")
    _run(outside, *train, "max_steps=2")
    assert "resumed from" in _run(outside, *train, "max_steps=3")
    diary = [json.loads(line) for line in (output / "diary.jsonl").read_text().splitlines()]
    assert [line["step"] for line in diary] == [1, 2, 2, 3, 3] and "accuracy" in diary[2]["results"]["demo_hq"]

    command = ("-m", "eval", "my_commands:similarity", "--checkpoint", str(output), "--bins", bins)
    refused = _run(outside, *command, code=2)
    assert "needs the plug-in my_parts:Encoder, whose code is not in the file" in refused
    assert "add --network my_parts:Encoder" in refused
    out = _run(outside, *command, "--network", "my_parts:Encoder", "--json", str(outside / "figures.json"))
    figures = json.loads((outside / "figures.json").read_text())["demo_hq"]
    assert -1 <= figures["different"] <= 1 and f"same {figures['same']:.3f}" in out

    published = outside / "published"
    export = ("-m", "eval", "export", "--checkpoint", str(output), "--network", "my_parts:Encoder", "--format", "hub")
    _run(outside, *export, "--out", str(published))
    assert 'load_encoder("published", network="my_parts:Encoder")' in (published / "README.md").read_text()
    sys.path.insert(0, str(outside))
    try:
        with pytest.raises(UserError, match="needs the plug-in"):
            load_encoder(published, torch.device("cpu"))
        exported = load_encoder(published, torch.device("cpu"), network="my_parts:Encoder", precision="fp32")
        run_folder = load_encoder(output, torch.device("cpu"), network="my_parts:Encoder")
        images = torch.randint(0, 256, (3, 112, 112, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        assert exported.card.network_options == {"width": 32}
        torch.testing.assert_close(exported.embed(images), run_folder.embed(images), rtol=0, atol=0)
    finally:
        sys.path.remove(str(outside))
        plugins._trusted.clear()


BROKEN = {
    "missing": ("absent_module:build", "cannot be imported: ModuleNotFoundError: No module named 'absent_module' (looked in "),
    "raises": ("broken_parts:build", "cannot be imported: ZeroDivisionError: division by zero (looked in "),
    "lacks": ("hook_parts:absent", "cannot be imported: ModuleNotFoundError: No module named 'hook_parts.absent'"),
    "options": ("hook_parts:Encoder", "got an unexpected keyword argument 'width'"),
}


@pytest.fixture
def hook_parts(tmp_path, monkeypatch):
    (tmp_path / "broken_parts.py").write_text("1 / 0\n")
    (tmp_path / "hook_parts.py").write_text(
        "class Encoder:\n    def __init__(self, embedding_size): pass\n"
        "class Raising:\n    def step(self, step, figures): raise KeyError('x')\n    def end(self, step, results): print('end')\n"
        "class Empty: pass\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    plugins._trusted.clear()


def test_options_that_a_plugin_does_not_accept_are_named(hook_parts):
    plugins.trust(["hook_parts:Encoder"])
    for key, build in (("margin", build_margin), ("partition", build_partition)):
        config = from_base(**{key: "hook_parts:Encoder", f"{key}_options": {"strange": 1}})
        with pytest.raises(UserError, match=f"^{key}='hook_parts:Encoder': .*unexpected keyword argument 'strange'; correct"):
            build(config)


@pytest.mark.parametrize("case", sorted(BROKEN))
def test_broken_plugins_are_named(case, hook_parts):
    name, expected = BROKEN[case]
    plugins.trust([name])
    with pytest.raises(UserError) as raised:
        build_encoder(from_base(network=name, network_options={"width": 3}))
    assert str(raised.value).count("network=") == 1 and str(raised.value).startswith(f"network={name!r}")
    assert expected in str(raised.value)
    assert len(raised.value.args) == 1


def test_a_hook_that_raises_is_named_and_not_called_again(hook_parts, capsys):
    plugins.trust(["hook_parts:Raising", "hook_parts:Empty"])
    hooks = Hooks(("hook_parts:Raising",), is_first=True)
    hooks("start", None, None)
    hooks("step", 1, {})
    hooks("end", 1, {})
    printed = capsys.readouterr()
    assert printed.err == "warning: hook hook_parts:Raising: step raised KeyError: 'x'; it is not called again\n"
    assert printed.out == ""
    with pytest.raises(UserError, match="has none of the methods start, step"):
        Hooks(("hook_parts:Empty",), is_first=True)


def test_options_need_a_plugin(tmp_path):
    (tmp_path / "config.py").write_text("config = {'margin_options': {'a': 1}, 'partition': 'worms', 'network_options': 3}")
    with pytest.raises(UserError) as raised:
        load(str(tmp_path / "config.py"))
    text = str(raised.value)
    assert "margin_options={'a': 1}: are a plug-in's; margin='adaface' has none" in text
    assert "partition='worms': must be 'norm', 'views', 'scale' or a plug-in, module:name" in text
    assert "network_options=3: must be options, such as {'width': 64}" in text
    (tmp_path / "config.py").write_text("config = {'network_options': {'dropout': 0.1}, 'tracker_options': {'wandb': {}}}")
    with pytest.raises(UserError) as raised:
        load(str(tmp_path / "config.py"))
    assert "may not contain keys that have a setting of their own" in str(raised.value)
    assert "are for trackers that trackers=('tensorboard',) does not name" in str(raised.value)
    with pytest.raises(UserError, match="unknown: did you mean 'qgface'"):
        recipe("qgfac")


def test_encoders_of_timm():
    pytest.importorskip("timm", reason="timm is not installed")
    encoder = build_encoder(from_base(network="timm:resnet18", embedding_size=32)).eval()
    assert encoder(torch.zeros(2, 3, 112, 112)).shape == (2, 32)
    with pytest.raises(UserError, match="timm:absent"):
        build_encoder(from_base(network="timm:absent"))
