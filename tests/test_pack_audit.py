"""`pack audit` finds errors planted in a small set, and `subset --drop` removes them."""

from __future__ import annotations

import csv
import json
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from eval.protocols.products import close_pairs, product_blocks
from recognition.data import FaceDataset
from recognition.data.bins import write_bin
from recognition.data.pack.commands.audit.approximate import approximate_pairs
from recognition.data.pack.commands.audit.duplicates import HideRepeated, equal_pixels
from recognition.data.pack.commands.audit.evidence import Evidence
from recognition.data.pack.commands.audit.identities import CentreScores, Identities, mean_cosines, own_cosines, two_means, unit
from recognition.data.pack.commands.audit.thresholds import low_quantile, outlier_limit
from tests.pack_tools import encoded, pack, read_files, write_files
from utils.errors import UserError

PEOPLE, SHOTS = 30, 6


class PixelEncoder:
    """Stands for an encoder: the feature of an image is the image, smaller."""

    def __init__(self, path: Path):
        self.path = path

    def embed(self, images: torch.Tensor) -> torch.Tensor:
        small = torch.nn.functional.avg_pool2d(images.permute(0, 3, 1, 2).float(), 14).flatten(1)
        return small - small.mean(dim=1, keepdim=True)


def shot(person: int, number: int) -> np.ndarray:
    """One of many photographs of a person: what they have in common, and what differs. BGR uint8 [112, 112, 3]."""
    common, own = (np.random.default_rng(seed).normal(0, 1, (8, 8, 3)) for seed in ((person,), (person, number)))
    large = cv2.resize((0.7 * common + 0.4 * own) * 50 + 128, (112, 112), interpolation=cv2.INTER_CUBIC)
    return np.clip(large, 0, 255).astype(np.uint8)


def re_encoded(image: np.ndarray) -> bytes:
    return cv2.imencode(".jpg", cv2.resize(cv2.resize(image, (90, 90)), (112, 112)), [cv2.IMWRITE_JPEG_QUALITY, 60])[1].tobytes()


def _use_pixel_encoder(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("recognition.encoders.load.load_encoder", lambda path, device: PixelEncoder(Path(path)))


def _write_set(folder: Path) -> None:
    """People p00 … p29 with six shots each, and errors in some."""
    files = {f"p{person:02}/{n}.png": encoded(shot(person, n), ".png") for person in range(PEOPLE) for n in range(SHOTS)}
    files["p00/copy.png"] = files["p00/1.png"]
    files["p01/copy.png"] = encoded(np.ascontiguousarray(shot(1, 2)[:, ::-1]), ".png")
    files["p02/copy.jpg"] = re_encoded(shot(2, 3))
    files["p03/copy.jpg"] = re_encoded(np.ascontiguousarray(shot(4, 0)[:, ::-1]))
    files["p05/stranger.png"] = encoded(shot(6, 99), ".png")
    for n in range(SHOTS):
        files[f"p07_again/{n}.png"] = encoded(shot(7, 50 + n), ".png")
        files[f"p08/other{n}.png"] = files.pop(f"p09/{n}.png")
    write_files(folder, files)


@dataclass
class Audited:
    """A set with errors, and its audit."""

    root: Path
    names: list[str] = field(default_factory=list)  # of the labels

    def rows(self, kind: str) -> list[dict[str, str]]:
        with (self.root / "audit/audit.csv").open(newline="") as file:
            return [row for row in csv.DictReader(file) if row["kind"] == kind]

    def name(self, image: str) -> str:
        with (self.root / "packed/images.csv").open(newline="") as file:
            return list(csv.reader(file))[int(image) + 1][2]


@pytest.fixture(scope="module")
def audited(tmp_path_factory: pytest.TempPathFactory) -> Audited:
    root = tmp_path_factory.mktemp("audited")
    _write_set(root / "photos")
    pack("folder", root / "photos", root / "packed", "--png")
    strangers = [encoded(shot(12, 0), ".png"), *(encoded(shot(100 + n, 0)) for n in range(11))]
    shared = [encoded(shot(10, 60)), encoded(shot(10, 61)), re_encoded(shot(11, 4)), strangers[1]]
    write_bin(root / "against.bin", [*shared, *strangers], [True, False] + [False] * 6)
    (root / "encoder").write_bytes(b"")
    with pytest.MonkeyPatch.context() as patch:
        _use_pixel_encoder(patch)
        against = ("--against", root / "against.bin", "--cache", root / "cache", "--json", root / "audit.json")
        pack("audit", root / "packed", "--out", root / "audit", "--checkpoint", root / "encoder", *against)
    with (root / "packed/classes.csv").open(newline="") as file:
        return Audited(root, [row["name"] for row in csv.DictReader(file)])


def test_copies_are_found_with_their_originals(audited):
    found = {(audited.name(row["image"]), audited.name(row["other_image"]), row["note"]) for row in audited.rows("exact")}
    assert found == {("p00/copy.png", "p00/1.png", ""), ("p01/copy.png", "p01/2.png", "mirrored")}
    found = {(audited.name(row["image"]), audited.name(row["other_image"]), row["note"]) for row in audited.rows("near")}
    other = ("p03/copy.jpg.jpg", "p04/0.png", "another identity, mirrored")
    assert {(image.replace(".jpg.jpg", ".jpg"), *rest) for image, *rest in found} == {
        ("p02/copy.jpg", "p02/3.png", ""),
        ("p03/copy.jpg", *other[1:]),
    }


def test_folders_are_audited_and_cleaned_as_they_are(audited, tmp_path, monkeypatch):
    _use_pixel_encoder(monkeypatch)
    for name in ("p00", "p01", "p02"):
        shutil.copytree(audited.root / "photos" / name, tmp_path / "photos" / name)
    pack("audit", tmp_path / "photos", "--out", tmp_path / "audit", "--checkpoint", audited.root / "encoder")
    listed = (tmp_path / "audit/audit.csv").read_text()
    assert "exact,1,1.0000,p00/copy.png,6,6,0,p00/1.png,1,1,0," in listed and "near,1,0.9" in listed
    pack("subset", tmp_path / "photos", tmp_path / "clean", "--drop", tmp_path / "audit/audit.csv")
    assert len(FaceDataset(tmp_path / "clean")) == 3 * SHOTS


def test_faiss_leads_to_the_same_list(audited, tmp_path, monkeypatch):
    pytest.importorskip("faiss")
    _use_pixel_encoder(monkeypatch)
    for number in range(9):
        shutil.copytree(audited.root / f"photos/p{number:02}", tmp_path / f"photos/p{number:02}")
        write_files(tmp_path / f"photos/p{number:02}", {"none.png": encoded(shot(200, 0), ".png")})  # "image not available"
    for name, many in (("blocks", 10**9), ("faiss", 0)):
        monkeypatch.setattr("recognition.data.pack.commands.audit.MANY", many)
        options = ("--against", audited.root / "against.bin", "--cache", tmp_path / "cache")
        pack("audit", tmp_path / "photos", "--out", tmp_path / name, "--checkpoint", audited.root / "encoder", *options)
    listed = (tmp_path / "blocks/audit.csv").read_text()
    assert (tmp_path / "faiss/audit.csv").read_text() == listed and listed.count("exact,1,") == 10


def test_wrong_labels_split_and_merged_identities_are_found(audited):
    names = audited.names
    suspects = {audited.name(row["image"]) for row in audited.rows("suspect")}
    assert "p05/stranger.png" in suspects and suspects <= {"p05/stranger.png", "p03/copy.jpg"}
    [split] = audited.rows("split")
    assert {names[int(split["label"])], names[int(split["other_label"])]} == {"p07", "p07_again"}
    [merged] = audited.rows("merged")
    assert names[int(merged["label"])] == "p08" and "6 and 6 images" in merged["note"]
    assert split["drop"] == merged["drop"] == "0" and split["image"] == merged["image"] == ""


def test_images_and_people_of_the_verification_set_are_found(audited):
    found = {(audited.name(row["image"]), row["other_key"], row["drop"]) for row in audited.rows("shared_image")}
    assert found == {("p11/4.png", "2", "0"), ("p12/0.png", "4", "1")}  # re-encoded, and with equal pixels
    found = {(audited.names[int(row["label"])], row["drop"]) for row in audited.rows("shared_person")}
    assert found == {("p10", "0"), ("p11", "0"), ("p12", "1")}
    assert {row["drop"] for kind in ("suspect", "split", "merged") for row in audited.rows(kind)} == {"0"}
    assert {row["drop"] for kind in ("exact", "near") for row in audited.rows(kind)} == {"1"}


def test_sheets_and_figures_are_written_and_features_are_kept(audited):
    kinds = {"exact", "near", "suspect", "split", "merged", "shared_image", "shared_person"}
    assert {path.stem for path in (audited.root / "audit").glob("*.png")} == kinds
    assert cv2.imread(str(audited.root / "audit/near.png")).shape == (2 + 2 * 114, 2 + 3 * 114, 3)
    figures = json.loads((audited.root / "audit.json").read_text())
    assert figures["near"] == {"found": 2, "drop": 2} and figures["thresholds"]["near_pixels"] == 0.97
    features = next((audited.root / "cache").glob("packed-*/features.npy"))
    assert np.load(features).dtype == np.float16


def test_subset_drops_what_the_list_drops(audited, tmp_path):
    rows = [row for kind in ("exact", "near", "suspect", "shared_image") for row in audited.rows(kind)]
    people = {int(row["label"]) for row in audited.rows("shared_person")}
    edited = re.sub(r"^(suspect|shared_\w+),0", r"\1,1", (audited.root / "audit/audit.csv").read_text(), flags=re.M)
    (tmp_path / "edited.csv").write_text(edited)
    pack("subset", audited.root / "packed", tmp_path / "clean", "--drop", tmp_path / "edited.csv")
    before, after = FaceDataset(audited.root / "packed"), FaceDataset(tmp_path / "clean")
    gone = {int(row["image"]) for row in rows} | set(np.flatnonzero(np.isin(before.labels(), list(people))).tolist())
    assert len(after) == len(before) - len(gone) and after.num_classes == before.num_classes - 3
    kept = sorted(before.read(image)[0] for image in set(range(len(before))) - gone)
    assert sorted(after.read(image)[0] for image in range(len(after))) == kept
    nothing = (audited.root / "audit/audit.csv").read_text().replace(",1,", ",0,", 1).splitlines()[:2]
    (tmp_path / "one.csv").write_text("\n".join(nothing))
    pack("subset", audited.root / "packed", tmp_path / "all", "--drop", tmp_path / "one.csv")
    assert read_files(tmp_path / "all")["train.rec"] == read_files(audited.root / "packed")["train.rec"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("kind,drop", "kind,dropped", r"line 1 lacks the columns drop; is it a list of `pack audit`\?"),
        (",1,1.0000", ",yes,1.0000", "line 2: drop is 'yes'; write 1 to drop, 0 to keep"),
        ("train.rec", "other.rec", r"line 2: image \d+ of .*packed is not key \d+ of other.rec with label 0; was the list made"),
        ("split,0", "split,1", None),
    ],
)
def test_mistakes_in_a_list_are_named(audited, tmp_path, old, new, message):
    (tmp_path / "audit.csv").write_text((audited.root / "audit/audit.csv").read_text().replace(old, new, 1))
    arguments = ("subset", audited.root / "packed", tmp_path / "out", "--drop", tmp_path / "audit.csv")
    if message is None:
        pack(*arguments)
        assert FaceDataset(tmp_path / "out").num_classes == len(audited.names) - 2
        return
    with pytest.raises(UserError, match=message):
        pack(*arguments)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("split,1,,,,999", r"line 2: label 999 is no identity of .*packed; was the list made for another set\?"),
        ("near,1,train.rec,1,x,0", "line 2: image 'x' and label '0' must be numbers; fix the line"),
        ("near,1", "line 2: has fewer or more fields than line 1; fix the line"),
        ('near,1,"train', "after line 1: is not CSV"),
    ],
)
def test_malformed_lines_of_a_list_are_named(audited, tmp_path, line, message):
    (tmp_path / "audit.csv").write_text(f"kind,drop,file,key,image,label\n{line}\n")
    with pytest.raises(UserError, match=message):
        pack("subset", audited.root / "packed", tmp_path / "out", "--drop", tmp_path / "audit.csv")


def test_a_missing_encoder_and_an_empty_set_are_one_line_each(audited, tmp_path):
    with pytest.raises(UserError, match="missing"):
        pack("audit", audited.root / "packed", "--out", tmp_path / "out", "--checkpoint", tmp_path / "missing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty: contains no \.rec file"):
        pack("audit", tmp_path / "empty", "--out", tmp_path / "out", "--checkpoint", tmp_path / "missing")
    with pytest.raises(UserError, match=r"nowhere\.bin"):
        pack("audit", audited.root / "packed", "--checkpoint", tmp_path, "--against", tmp_path / "nowhere.bin")
    with pytest.raises(UserError, match="--batch-size 0: must be 1 or more"):
        pack("audit", tmp_path, "--checkpoint", tmp_path, "--batch-size", 0)
    assert not (tmp_path / "out").exists()


# ------------------------------------------------------------------------------------------------ arithmetic


def test_limits_ignore_the_findings_themselves():
    scores = np.random.default_rng(0).normal(0.2, 0.1, 10_000)
    assert outlier_limit(scores, 0.001) == pytest.approx(0.2 + 3.09 * 0.1, abs=0.01)
    with_errors = np.concatenate([scores, np.full(300, 2.0), [np.nan, np.inf]])
    assert outlier_limit(with_errors, 0.001) == pytest.approx(outlier_limit(scores, 0.001), abs=0.02)
    assert outlier_limit(scores[:2], 0.001) == np.inf
    assert low_quantile(np.arange(101.0), 0.1) == 10 and low_quantile(np.array([np.nan]), 0.1) == -np.inf


def test_own_and_mean_cosines_are_those_of_the_dense_arithmetic():
    rng = np.random.default_rng(1)
    features = unit(rng.standard_normal((40, 5))).astype(np.float16)
    labels, weights = rng.integers(0, 7, 40), (rng.random(40) > 0.2).astype(np.float32)
    labels[0] = 8  # alone, and label 7 is empty
    weights[0] = 1
    people = Identities(Evidence(None, features, None, None), labels, weights)  # type: ignore[arg-type]
    rows, own, means = features.astype(np.float64), own_cosines(people), mean_cosines(people)
    for image in range(40):
        others = (labels == labels[image]) & (weights > 0) & (np.arange(40) != image)
        centre = rows[others].sum(axis=0)
        expected = rows[image] @ centre / np.linalg.norm(centre) if others.any() else np.nan
        np.testing.assert_allclose(own[image], expected, rtol=1e-4, atol=1e-5)
    for label in range(9):
        mine = rows[(labels == label) & (weights > 0)]
        cosines = (mine @ mine.T)[np.triu_indices(len(mine), 1)]
        np.testing.assert_allclose(means[label], cosines.mean() if len(cosines) else np.nan, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("block", [3, 4096])
def test_scores_of_centres_are_those_of_the_dense_arithmetic(block, monkeypatch):
    monkeypatch.setattr(
        "eval.protocols.products.product_blocks",
        lambda rows, columns, device, _, on_rows: product_blocks(rows, columns, device, block, on_rows),
    )
    rng = np.random.default_rng(4)
    features = unit(rng.standard_normal((40, 5))).astype(np.float16)
    people = Identities(Evidence(None, features, None, None), np.arange(40) // 4, np.ones(40, np.float32))  # type: ignore[arg-type]
    cosines = (people.centres @ people.centres.T).astype(np.float64)
    np.fill_diagonal(cosines, np.nan)
    standard = (cosines - np.nanmean(cosines, axis=1)[:, None]) / np.nanstd(cosines, axis=1)[:, None]
    expected = (standard + standard.T) / 2
    scores = CentreScores(people, torch.device("cpu"))
    np.testing.assert_allclose(scores.nearest(), np.nanmax(expected, axis=1), rtol=1e-4)
    pairs = {(min(i, j), max(i, j)): score for i, j, score in scores.pairs(0.5, 0.3)}
    assert set(pairs) == {(i, j) for i, j in np.argwhere((expected >= 0.5) & (cosines >= 0.3)).tolist() if i < j}
    np.testing.assert_allclose(list(pairs.values()), [expected[pair] for pair in pairs], rtol=1e-4)


def test_two_means_separates_two_directions():
    rng = np.random.default_rng(2)
    rows = unit(np.repeat(np.eye(2, 8), 5, axis=0) + 0.1 * rng.standard_normal((10, 8)))
    second = two_means(rows)
    assert len(set(second[:5])) == len(set(second[5:])) == 1 and second[0] != second[5]


@pytest.mark.parametrize("columns", [False, True])
def test_faiss_finds_the_pairs_of_the_blockwise_comparison(columns):
    pytest.importorskip("faiss")
    rng = np.random.default_rng(3)
    rows = unit(rng.standard_normal((3000, 16))).astype(np.float16)
    rows[:300] = rows[300:600]
    others = rows[500:900] if columns else None
    i, j = approximate_pairs(rows, others, 0.97)
    expected = set(zip(*(column.tolist() for column in close_pairs(rows, others, 0.97)[:2]), strict=True))
    found = set(zip(i.tolist(), j.tolist(), strict=True))
    assert len(expected & found) > 0.95 * len(expected) and len(found - expected) < 3


@pytest.mark.parametrize("by", ["blocks", "faiss"])
def test_repeated_images_are_compared_once(monkeypatch, by):
    if by == "faiss":
        pytest.importorskip("faiss")
    monkeypatch.setattr("eval.protocols.products.MOST_PAIRS", 10)
    hashes = np.array([[1, 2]] * 50 + [[n, n] for n in range(3, 6)], np.uint64)
    rows = np.eye(4, dtype=np.float32)[[0] * 50 + [0, 1, 2]]
    hide = HideRepeated(hashes, hashes)
    if by == "faiss":
        i, j = approximate_pairs(rows, None, 0.9, hidden=hide.repeated)
    else:
        i, j, _ = close_pairs(rows, None, 0.9, block=20, score=hide)
    assert (i.tolist(), j.tolist()) == ([0], [50])
    with pytest.raises(UserError, match="more than 10 pairs have a cosine"):
        _ = approximate_pairs(rows, None, 0.9) if by == "faiss" else close_pairs(rows, None, 0.9)


def test_equal_pixels_pairs_each_image_of_a_group_once():
    hashes = np.array([[1, 2], [3, 4], [2, 1], [1, 2], [5, 5]], np.uint64)
    first, second = equal_pixels(hashes, None)
    assert sorted(zip(first.tolist(), second.tolist(), strict=True)) == [(0, 2), (0, 3)]
    first, second = equal_pixels(hashes, np.array([[4, 3], [9, 8], [2, 1]], np.uint64))
    assert sorted(zip(first.tolist(), second.tolist(), strict=True)) == [(0, 2), (1, 0), (2, 2), (3, 2)]
