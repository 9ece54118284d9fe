"""`python -m eval report`: the page has everything that a run's folder contains, is self-contained, and fits any browser."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
import xml.etree.ElementTree as ElementTree
from unittest import mock

import cv2
import numpy as np
import pytest
import torch

from eval.commands import report
from eval.present.plots import Curve, draw_curves
from eval.report import page as html_page
from eval.report.read import read_run
from recognition.data.batch import sample_views
from recognition.encoders.card import QualityScale
from tests.eval_commands import run_eval
from tests.shared_files import FACES, needs_faces
from utils import dist
from utils.config import from_base
from utils.errors import UserError

VAL = FACES / "val"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
SECTIONS = ("results", "training", "verification", "roc", "similarity", "pairs", "norms", "differences", "gradients")


@pytest.fixture
def run(tmp_path):
    """A run's folder, with names full of characters that have a meaning in HTML."""
    folder = tmp_path / "a <b> & c"
    (folder / "eval").mkdir(parents=True)
    lines = []
    for step in range(1, 41):
        lines.append(
            {
                "step": step,
                "loss": 40 / step,
                "loss_classification": 30 / step,
                "loss_contrastive": 10 / step,
                "lr": 0.1,
                "high_quality_share": 0.8,
                "low_quality_pair_share": 0.3,
                "norm_mean": 20 + step / 10,
                "gradient_norm": 3.0,
                "quality_mean": 20.0,
                "quality_std": 5.0,
                "images_per_second": 100.0 + step,
            }
        )
        if step % 20 == 0:
            lines.append({"step": step, "verification/lfw/accuracy": 0.9 + step / 1000, "verification/lfw/tar@far=1e-3": 0.5})
        if step % 10 == 0:
            looked = {
                f"diagnostics/{view}/norm_p{level}": centre + int(level) / 20 + step / 40
                for view, centre in (("original", 20), ("augmented", 16))
                for level in ("05", "25", "50", "75", "95")
            }
            shares = {
                "original/high_quality_share": 0.95,
                "augmented/high_quality_share": 0.6,
                "low_quality_pair_share": 0.4,
                "augmented_norm_smaller_share": 0.9,
            }
            looked |= {f"diagnostics/{name}": value for name, value in {**shares, "threshold_norm": 17.0}.items()}
            lines.append({"step": step, **looked})
    lines.append({"step": 41, "skipped": "features of rank 0 are not finite"})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    metrics = {"accuracy": 0.9417, "std": 0.01, "tar@far=1e-3": 0.5, "auc": 0.97, "pairs": 6000}
    (folder / "results.json").write_text(json.dumps({"lfw": metrics, "<script>x</script>": metrics}))
    (folder / "eval/scface.json").write_text(json.dumps({f"scface_d{d}": {"rank1": 0.5 + d / 10} for d in (1, 2, 3)}))
    curves = {"steps": [0, 10, 20], "positive": [0.9, 0.5, 0.3], "negative": [1.0, 1.2, 1.3]}
    measured = {
        **curves,
        "positive": [None, 0.5, 0.3],
        "age": [2, 3, 3],
        "cosine": [0.91, 0.93, 0.99],
        "own_key": [0.3, 0.2, 0.1],
    }
    (folder / "pair_differences.json").write_text(json.dumps({"momentum": curves, "proxy, compensated": measured}))
    config = {
        "network": "tiny",
        "rec": "data",
        "num_classes": 430,
        "val_targets": [],
        "margin": "adaface",
        "margin_m": 0.4,
        "scale": 64.0,
        "quality_concentration": 0.333,
        "quality_threshold": 0.2,
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def alone():
    dist.start()
    yield
    dist.stop()


def cells(images_nHWC: torch.Tensor) -> torch.Tensor:
    grey = images_nHWC.float().mean(dim=3)
    pooled = torch.nn.functional.avg_pool2d(grey[:, None], 14).flatten(1)
    return (pooled - pooled.mean(dim=1, keepdim=True)) / 16


def some_views(config: object, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Faces from sharp to flat, so that both sides of the partition have some."""
    faces = np.random.default_rng(0).integers(0, 256, (count, 112, 112, 3))
    contrast = np.linspace(0.1, 1, count)[:, None, None, None]
    coarse = np.repeat(np.repeat(faces[:, ::14, ::14], 14, 1), 14, 2)
    sharp, dull = 128 + contrast * (coarse - 128), 128 + contrast * (coarse - 128) / 3
    return sharp.astype(np.uint8), dull.astype(np.uint8)


def write_report(*arguments: object, threshold: float | None = 0.2, views=some_views) -> None:
    with (
        mock.patch.object(report, "sample_views", views),
        mock.patch.object(report.store, "find", lambda folder: folder),
        mock.patch.object(report.store, "read_config", lambda folder: from_base()),
    ):
        run_eval(cells, "report", *arguments, quality=QualityScale(20.0, 5.0, 0.333, threshold))


def section(page: str, name: str) -> str:
    return re.search(rf'<section id="{name}">(.*?)</section>', page, re.DOTALL)[1]


@needs_faces
def test_the_page_has_everything_and_fits_the_browser(alone, run, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    (data / "lfw_hq.bin").symlink_to(VAL / "lfw_hq.bin")
    (data / "scface").symlink_to(VAL / "scface")
    write_report(run, "--data-root", data, "--images", 60)
    page = (run / "report.html").read_text()
    assert [name for name in SECTIONS if f'<section id="{name}">' in page] == list(SECTIONS)
    assert not re.search(r"""(?:src|href)=["'](?!data:|#)|url\((?!#)|@import|<script""", page)
    assert "94.17 ± 1.00" in section(page, "results") and "99.50" in section(page, "results")  # the second: the paper on LFW
    assert "60.00" in section(page, "results") and "QGFace" not in section(page, "training")
    assert "&lt;script&gt;" in page and "a &lt;b&gt; &amp; c" in page
    assert (
        section(page, "roc").count("<svg") == 3
        and "not measurable" in section(page, "roc")
        and re.search(r">lfw_hq +TAR [\d.]+ % +AUC ", section(page, "roc"))
    )
    assert section(page, "similarity").count("<svg") == 3 and "gain" in section(page, "similarity")
    shown = section(page, "pairs")
    for kind in ("HQ: both features are classified", "LQ: the pair is contrasted"):
        assert kind in shown
    u = [(float(value), word) for value, word in re.findall(r'">(\d\.\d+) (HQ|LQ)<', shown)]
    assert u and all((value > 0.2) == (word == "HQ") for value, word in u if abs(value - 0.2) > 1e-3)
    assert {word for _, word in u} == {"HQ", "LQ"} and len(u) == shown.count("<img")
    shown = section(page, "differences")
    assert "momentum" in shown and shown.count("<svg") == 4 and "2 to 3 updates later" in shown
    assert re.search(r"<td>proxy, compensated</td><td>0\.4000</td><td>0\.2000</td><td>1\.1667</td><td>0\.9433</td>", shown)
    assert section(page, "norms").count("<svg") == 6 and section(page, "norms").count("PolyCollection") == 4
    assert "m = 0.4, s = 64" in section(page, "gradients") and section(page, "gradients").count("<image ") == 2  # map, colour bar
    ids, used = _ids(page), set(re.findall(r'(?:url\(|href=")#([^")]+)', page))
    assert len(ids) == len(re.findall(r' id="', page)) and used and used <= ids  # unique on the page, and none is missing
    assert "skipped steps" in page
    if CHROMIUM is None:
        pytest.skip("no chromium: the page was not opened in a browser")
    _open_in_browser(page, tmp_path)


def _open_in_browser(page: str, folder) -> None:
    """Load the page at the widths of a phone and a desktop, and check what the browser measures."""
    probe = """<script>onload = () => { const seen = [...document.querySelectorAll('iframe')].map(frame => {
      const inside = frame.contentDocument, images = [...inside.images];
      return {sections: [...inside.querySelectorAll('section')].map(s => s.id), wide: inside.documentElement.scrollWidth,
        room: frame.clientWidth, broken: images.filter(i => !i.naturalWidth).length, images: images.length,
        charts: [...inside.querySelectorAll('svg')].filter(s => s.getBoundingClientRect().height > 100).length,
        lines: [...inside.querySelectorAll('svg path')].filter(p => p.getTotalLength() > 20).length,
        outside: inside.defaultView.performance.getEntriesByType('resource').filter(e => !e.name.startsWith('data:')).length}});
      document.body.textContent = JSON.stringify(seen); }</script>"""
    frame = '<iframe style="border:0;width:{}px;height:900px" srcdoc="{}"></iframe>'
    frames = "".join(frame.format(width, html.escape(page)) for width in (360, 1200))
    (folder / "probe.html").write_text(f'<!DOCTYPE html><meta charset="utf-8"><body>{frames}{probe}</body>')
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={folder / 'browser'}", "--dump-dom", (folder / "probe.html").as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=True)
    views = json.loads(html.unescape(re.search(r"<body>(\[.*\])", done.stdout, re.DOTALL)[1].split("</body>")[0]))
    for view in views:
        assert view["sections"] == list(SECTIONS)
        assert view["wide"] <= view["room"], "the page is wider than the screen"
        assert view["images"] == page.count("<img") > 0 and view["broken"] == 0 and view["outside"] == 0
        assert view["charts"] == page.count("<svg") and view["lines"] >= view["charts"]


def test_without_encoder_and_without_partition(alone, run):
    write_report(run, "--no-encoder", "--out", run / "plain.html")
    page = (run / "plain.html").read_text()
    assert page.count("written with --no-encoder") == 3 and "<img" not in page
    write_report(run, "--images", 20, threshold=None)
    assert "No partition in this run" in section((run / "report.html").read_text(), "pairs")


def test_another_runs_queue_is_drawn_as_well(alone, run, tmp_path):
    other = tmp_path / "moco"
    shutil.copytree(run, other)
    write_report(run, "--no-encoder", "--compare", other)
    shown = section((run / "report.html").read_text(), "differences")
    assert all(name in shown for name in (">momentum<", ">proxy, compensated<", ">moco: momentum<", ">moco: proxy, compensated<"))


def test_other_margins_have_no_gradient_map(alone, run):
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({**config, "margin": "arcface"}))
    write_report(run, "--no-encoder")
    assert '<section id="gradients">' not in (run / "report.html").read_text()


def test_what_cannot_be_measured_has_a_note(alone, run):
    def gone(config: object, count: int) -> tuple[np.ndarray, np.ndarray]:
        raise UserError("/data/vgg2: no such folder")

    write_report(run, views=gone)
    page = (run / "report.html").read_text()
    assert "/data/vgg2: no such folder" in section(page, "pairs")
    assert "--data-root" in section(page, "roc") and "--data-root" in section(page, "similarity")


def test_measurements_that_are_not_finite_or_zero_leave_gaps(alone, run):
    lines = [
        {"step": step, "loss": loss, "gradient_norm": gradient, "norm_mean": float("nan")}
        for step, loss, gradient in ((1, 3.0, 0.0), (2, float("inf"), 500.0), (3, float("nan"), 1.0), (4, 2.0, 2.0))
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    write_report(run, "--no-encoder")
    shown = section((run / "report.html").read_text(), "training")
    assert shown.count("<svg") == 3 and "log scale" in shown and not re.search(r"\bnan\b|\binf\b", shown)


def test_a_run_without_measurements(alone, run):
    (run / "metrics.jsonl").write_text("")
    shutil.rmtree(run / "eval")
    (run / "results.json").unlink()
    write_report(run, "--no-encoder")
    page = (run / "report.html").read_text()
    assert "No step has been reported yet" in page and "No results.json" in page


@pytest.mark.parametrize("torn", ['{"step": 2, "lo', "\0\0\0\0", '{"step": 2, "loss": null}'])
def test_a_killed_run_can_be_reported(run, torn):
    """Its last line may be cut off, or zeros after a power failure; figures that were not finite are null."""
    (run / "metrics.jsonl").write_text('{"step": 1, "time": "2026-01-01T00:00:00+00:00", "loss": 2.0}\n' + torn)
    read = read_run(run).training
    assert read["loss"][0] == 2.0 and "time" not in read and not np.isfinite(read["loss"][1:]).any()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("metrics.jsonl", '{"step": 1}\nnothing\n', "line 2: not a measurement"),
        ("metrics.jsonl", 'nothing\n{"step": 1}', "line 1: not a measurement"),
        ("results.json", "{", "cannot be read"),
        ("eval/other.json", '{"a": 1}', "not a results file"),
        ("pair_differences.json", '{"proxy": {"steps": [1]}}', "expected queue"),
        ("pair_differences.json", '{"q": {"steps": [1], "positive": [], "negative": []}}', "differ in length"),
    ],
)
def test_damaged_files_are_named(run, name, content, message):
    (run / name).write_text(content)
    with pytest.raises(UserError, match=message) as error:
        read_run(run)
    assert str(run / name) in str(error.value)


def test_a_folder_that_is_not_a_run(tmp_path):
    with pytest.raises(UserError, match=r"no metrics\.jsonl here"):
        read_run(tmp_path)


def _ids(text: str) -> set[str]:
    return set(re.findall(r' id="([^"]+)"', text))


def test_a_chart_has_the_colours_of_the_page_and_ids_of_its_own():
    curves = [Curve(label, np.arange(1e5), np.sin(np.arange(1e5) / 1e4)) for label in ("first", "second & third")]
    charts = [html_page.chart(draw_curves(curves, "title", "step", "y"), title, "a note") for title in ("A <chart>", "another")]
    assert all(len(chart) < 60_000 for chart in charts), "points that cannot be seen are left out"
    for chart in charts:
        svg = re.search(r"<svg.*</svg>", chart, re.DOTALL)[0]
        ElementTree.fromstring(svg)
        assert not re.search(r"#[0-9a-fA-F]{6}", svg) and {"var(--c0)", "var(--c1)", "var(--ink)", "var(--card)"} <= set(
            re.findall(r"var\(--\w+\)", svg)
        )
        assert "second &amp; third" in svg and "<style" not in svg and ">title<" not in svg
    assert "A &lt;chart&gt;" in charts[0] and not set(re.findall(r' id="([^"]+)"', charts[0])) & set(
        re.findall(r' id="([^"]+)"', charts[1])
    )


@needs_faces
def test_training_views_are_the_sets_own_images():
    config = from_base(rec=str(FACES / "lfw_train"), augmentation="qgface")
    originals, augmented = sample_views(config, 5)
    assert originals.shape == augmented.shape == (5, 112, 112, 3) and originals.dtype == np.uint8
    sharpness = [[cv2.Laplacian(image, cv2.CV_64F).var() for image in images] for images in (originals, augmented)]
    assert np.median(sharpness[0]) > 2 * np.median(sharpness[1])
    again = sample_views(config, 5)
    assert np.array_equal(again[1], augmented)
    with pytest.raises(UserError, match="nowhere"):
        sample_views(from_base(rec="nowhere"), 5)
