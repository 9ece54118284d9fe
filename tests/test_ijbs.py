"""`python -m eval ijbs` on a release of noisy pictures: figures against plain loops, lost crops, bad input."""

from __future__ import annotations

import functools
import json
import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from eval.commands import ijbs
from eval.protocols import ijbs as protocol
from tests.eval_commands import run_eval
from utils import dist
from utils.errors import UserError

SUBJECTS = range(1, 25)
GALLERIES = (range(1, 11), range(11, 22))  # 22 … 24 are in none
SEEN = {f"videos/{4000 + n}.mp4": [1 + (5 * n + 7 * k) % 24 for k in range(12)] for n in range(8)}
PROBES, GALLERY_VIDEOS = list(SEEN)[:6], list(SEEN)[4:]
UAV = ["videos/4001.mp4", "videos/4003.mp4", *(f"img/{subject}9.jpg" for subject in (2, 12, 22, 23))]
LOST = ((3, "videos_4001"), (2, "img_20"), (11, "img_110"), (11, "img_111"), (24, "videos_4003"))


def gallery_videos(subjects: range) -> list[tuple[int, str]]:
    """The first gallery video of each subject."""
    firsts = {subject: file for file in reversed(GALLERY_VIDEOS) for subject in SEEN[file] if subject in subjects}
    return sorted(firsts.items())


def write_csv(path: Path, header: str, lines: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([header, *lines, ""]))


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "ijbs"
    boxes = [f"{subject},{file},10,20,30,40" for file, subjects in SEEN.items() for subject in subjects for _ in range(2)]
    boxes += [f"{subject},img/{subject}{n}.jpg,1,2,3,4" for subject in SUBJECTS for n in (0, 1, 9)]
    write_csv(root / "protocols/cs6_metadata.csv", "SUBJECT_ID,FILE,X,Y,W,H", boxes)
    for name, files in (
        ("surveillance_to_single-booking", [*PROBES, "videos/4999.mp4"]),
        ("surveillance_to_surveillance", PROBES[:4]),
    ):
        write_csv(root / f"protocols/cs6_{name}_probe.csv", "FILE", files)
    write_csv(root / "protocols/cs6_uav_to_single-booking_probe.csv", "FILE", UAV)
    for number, subjects in enumerate(GALLERIES, 1):
        lines = {
            "single": [f"0,{subject},img/{subject}0.jpg" for subject in subjects],
            "booking": [f"0,{subject},img/{subject}{n}.jpg,1" for n in (0, 1) for subject in subjects],
            "surveillance": [f"0,{subject},{file}" for subject, file in gallery_videos(subjects) for _ in range(2)],
        }
        for name, each in lines.items():
            write_csv(root / f"protocols/galleries/cs6_surveillance_to_{name}_g{number}.csv", "T,SUBJECT_ID,FILE", each)
    rng = np.random.default_rng(0)
    for subject in SUBJECTS:
        folder = root / "aligned" / str(subject)
        folder.mkdir(parents=True)
        face = rng.uniform(60, 195, (8, 8, 3))
        sources = [f"img_{subject}{n}" for n in (0, 1, 9)]
        sources += [f"videos_{Path(file).stem}" for file, subjects in SEEN.items() if subject in subjects]
        for source in sources:
            for frame in ["", "_12", "_13_0"][: 1 if source.startswith("img") else 3]:
                picture = np.clip(face + rng.normal(0, 70, face.shape), 0, 255).astype(np.uint8)
                picture = cv2.resize(picture, (112, 112), interpolation=cv2.INTER_NEAREST)
                suffix = frame if source.startswith("img") else frame or "_7"
                if (subject, source) not in LOST:
                    cv2.imwrite(str(folder / f"{source}{suffix}.png"), picture)
    (root / "aligned/1/videos_5000_1.png").write_bytes(b"of no template")
    return root


def picture(images_nHWC: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.avg_pool2d(images_nHWC.float().mean(dim=3)[:, None], 14).flatten(1) - 128


def evaluate(root: Path, out: Path, *arguments: object) -> dict[str, dict[str, float]]:
    dist.start()
    run_eval(picture, "ijbs", "--checkpoint", root, "--data-root", root, "--json", out, "--plots", out.parent, *arguments)
    dist.stop()
    return json.loads(out.read_text())


# -------------------------------------------------------------------------------------------------- plain loops

Given = list[tuple[int, list[str]]]
"""Templates: subject, files."""


def given_protocols() -> dict[str, tuple[Given, Given, Given]]:
    def of_videos(files: list[str]) -> Given:
        return [(subject, [file]) for file in files for subject in SEEN[file]]

    single, booking, videos = [], [], []
    for subjects in GALLERIES:
        single.append([(subject, [f"img/{subject}0.jpg"]) for subject in subjects])
        booking.append([(subject, [f"img/{subject}0.jpg", f"img/{subject}1.jpg"]) for subject in subjects])
        videos.append([(subject, [file]) for subject, file in gallery_videos(subjects)])
    everywhere = {subject: [file for file in SEEN if subject in SEEN[file]] for subject, _ in of_videos(PROBES[:4])}
    uav = of_videos(UAV[:2]) + [(int(file[4:-5]), [file]) for file in UAV[2:]]
    return {
        "single": (of_videos(PROBES), *single),
        "booking": (of_videos(PROBES), *booking),
        "multiview": (list(everywhere.items()), *booking),
        "surveillance": (of_videos(PROBES[:4]), *videos),
        "uav": (uav, *booking),
    }


@functools.cache
def feature(root: Path, subject: int, files: tuple[str, ...], normalise: bool) -> np.ndarray | None:
    total = np.zeros(64)
    for file in files:
        stem = file.replace("/", "_").rsplit(".")[0]
        for path in (root / "aligned" / str(subject)).glob(f"{stem}_*" if "videos" in file else f"{stem}.*"):
            face = torch.from_numpy(cv2.imread(str(path))[None, ..., ::-1].copy())
            row = (picture(face) + picture(face.flip(2))).numpy()[0].astype(np.float64)
            total += row / np.linalg.norm(row) if normalise else row
    return total / np.linalg.norm(total) if total.any() else None


def rates(root: Path, probes: Given, g1: Given, g2: Given, normalise: bool) -> dict[str, float]:
    def scores(probe: tuple[int, list[str]], gallery: Given) -> tuple[list[float], list[float]]:
        own: list[float] = []
        others: list[float] = []
        row = feature(root, probe[0], tuple(probe[1]), normalise)
        for subject, files in gallery:
            entry = feature(root, subject, tuple(files), normalise)
            if row is not None and entry is not None:
                (own if subject == probe[0] else others).append(float(row @ entry))
        return own, others

    def is_mated(probe: tuple[int, list[str]], gallery: Given) -> bool:
        return any(subject == probe[0] for subject, _ in gallery)

    def rank(own: list[float], others: list[float]) -> float:
        return 1 + sum(other >= max(own) for other in others) if own else np.inf

    ranks = [rank(*scores(probe, g1 + g2)) for probe in probes if is_mated(probe, g1 + g2)]
    found = {f"rank{n}": float(np.mean([each <= n for each in ranks])) for n in (1, 5, 10)}
    for fpir in (0.01, 0.1):
        detected = []
        for gallery in (g1, g2):
            highest = sorted(
                (max(scores(probe, gallery)[1], default=-np.inf) for probe in probes if not is_mated(probe, gallery)),
                reverse=True,
            )
            accepted = int(fpir * len(highest))
            threshold = highest[accepted - 1] if accepted else highest[0] + 1e-12
            mated = [scores(probe, gallery) for probe in probes if is_mated(probe, gallery)]
            detected.append(np.mean([rank(*each) == 1 and max(each[0]) >= threshold for each in mated]))
        found[f"dir@fpir={fpir:g}"] = float(np.mean(detected))
    return found


# -------------------------------------------------------------------------------------------------- tests


@pytest.mark.parametrize("normalise", [False, True])
def test_figures_equal_a_plain_loop(release, tmp_path, capsys, monkeypatch, normalise):
    monkeypatch.setattr(protocol, "CROPS_AT_ONCE", 50)
    flag = ["--equal-weights", "--no-paper"] if normalise else []
    found = evaluate(release, tmp_path / "out.json", "--bootstrap", "20", "--cache", tmp_path / "cache", *flag)
    assert tuple(found) == ijbs.SETS and (tmp_path / "cmc_ijbs.png").is_file()
    for name, (probes, g1, g2) in given_protocols().items():
        metrics = found[f"ijbs_{name}"]
        assert rates(release, probes, g1, g2, normalise).items() <= metrics.items(), name
        assert metrics["rank1 low"] <= metrics["rank1"] <= metrics["rank1 high"]
        mated = sum(subject <= 21 for subject, _ in probes)
        assert (metrics["mated_probes"], metrics["unmated_probes"]) == (mated, len(probes) - mated)
    assert 0.2 < found["ijbs_single"]["rank1"] < found["ijbs_multiview"]["rank1"] < 1
    assert found["ijbs_single"]["probes_without_crops"] == 2 and found["ijbs_booking"]["gallery_without_crops"] == 1
    assert found["ijbs_single"]["gallery_without_crops"] == 2 and found["ijbs_uav"]["probes_without_crops"] == 2
    shown = capsys.readouterr()
    assert "1 probe videos show no subject, such as videos_4999" in shown.err and "27 unused crops" in shown.err
    published = r"surveillance to single \(AdaFace R100, MS1MV2\) +\| +65\.26 \| +70\.53 \| +– \| +51\.66 \|"
    assert bool(re.search(published, shown.out)) is not normalise
    assert evaluate(release, tmp_path / "again.json", "--bootstrap", "20", "--cache", tmp_path / "cache", *flag) == found
    assert "features: " in capsys.readouterr().out


def test_all_finds_the_release(release, tmp_path, capsys):
    dist.start()
    run_eval(picture, "all", "--checkpoint", "x", "--data-root", release.parent, "--json", tmp_path / "out.json")
    dist.stop()
    rank1 = json.loads((tmp_path / "out.json").read_text())["ijbs_single"]["rank1"]
    summary = capsys.readouterr().out.split("Summary")[1]
    assert "IJB-S single" in summary and f" {100 * rank1:.2f} " in summary


GALLERY = "protocols/galleries/cs6_surveillance_to_"


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("protocols/cs6_metadata.csv", None, r"protocols: the IJB-S release is incomplete; missing: cs6_metadata\.csv"),
        (f"{GALLERY}booking_g2.csv", None, r"missing: galleries/cs6_surveillance_to_booking_g2\.csv"),
        ("protocols/cs6_metadata.csv", "S,F\n1,videos/4000.mp4\nx1,img/3.jpg\n", r"metadata\.csv: line 3: 'x1' is not a subject"),
        ("protocols/cs6_metadata.csv", "S,F\n1\n", r"metadata\.csv: line 2: '1' has fewer than 2 columns"),
        ("protocols/cs6_metadata.csv", "S,F\n1,frames/1.jpg\n", r"line 2: 'frames/1\.jpg' is neither a video"),
        (f"{GALLERY}single_g1.csv", "T,S,F\n0,99,img/10.jpg\n", r"g1\.csv: line 2: subject 99 is not in the metadata"),
        (f"{GALLERY}surveillance_g1.csv", "T,S,F\n0,2,videos/1.mp4\n", r"line 2: subject 2 is not in videos/1\.mp4"),
        (f"{GALLERY}single_g2.csv", "T,S,F\n", r"g2\.csv: contains no lines below its header"),
        (f"{GALLERY}single_g2.csv", "T,S,F\n0,11,img/110.jpg\n", "to single: none of the 1 templates of g2 has crops"),
        ("protocols/cs6_uav_to_single-booking_probe.csv", "F\nimg/5.jpg\n", r"line 2: img/5\.jpg is not in the metadata"),
        ("protocols/cs6_uav_to_single-booking_probe.csv", "F\nimg/29.jpg\n", "UAV to booking: g1 contains all of the probes"),
        ("aligned", None, "aligned: no such folder; align IJB-S's faces first, and give --crops"),
        ("aligned", "", r"aligned: no crop belongs to a template; looked for SUBJECT/videos_4012_"),
        ("aligned/3/img_30.png", "", r"aligned/3/img_30\.png: the image \(0 bytes\) cannot be decoded"),
    ],
)
def test_bad_input_is_one_line(release, tmp_path, file, text, message):
    shutil.copytree(release, tmp_path / "copy")
    path = tmp_path / "copy" / file
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    if file == "aligned" and text is not None:
        path.mkdir()
    elif text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=message) as raised:
        ijbs.prepare(tmp_path / "copy")
    assert len(raised.value.args) == 1
