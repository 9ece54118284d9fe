"""IJB-B/C: the authors' figures, templates and pairs against plain loops, identification, files, alignment, bad input."""

from __future__ import annotations

import json
import math
from pathlib import Path

import cv2
import numpy as np
import pytest

from eval.protocols import ijb
from eval.protocols.bootstrap import accuracy_interval, tar_interval
from eval.protocols.identification import search
from eval.protocols.ijb import (
    SETTINGS,
    ImageFeatures,
    Setting,
    Templates,
    identify,
    pair_scores,
    pool_templates,
    verify_templates,
)
from eval.protocols.ijb_files import ArrayRows, LooseCrops, Meta, read_feature_file
from eval.roc import Roc, roc_curve
from eval.verification import ten_fold
from tests.shared_files import GOLDEN, needs_golden
from utils.errors import UserError
from utils.images.alignment import ARCFACE_TEMPLATE, align_face
from utils.number_table import read_numbers


class Release:
    """A small synthetic release: templates with several media of several images, pairs, galleries and probes."""

    def __init__(self, folder: Path, images: int = 300, templates: int = 40, people: int = 12, seed: int = 0):
        generator = np.random.default_rng(seed)
        self.folder, self.meta = folder, Meta(folder / "meta", "IJBB")
        (folder / "meta").mkdir(parents=True)
        self.person = np.concatenate([np.arange(people), generator.integers(0, people, templates - people)])
        self.template = np.concatenate([np.arange(templates), generator.integers(0, templates, images - templates)])
        self.media = generator.integers(0, 5, images)  # numbers that templates share
        centres = generator.normal(size=(people, 16))
        of_image = centres[self.person[self.template]]
        self.features, self.flipped = (
            (of_image + generator.normal(size=of_image.shape)).astype(np.float32)
            * generator.uniform(1, 20, (images, 1)).astype("f4")
            for _ in range(2)
        )
        self.scores = generator.uniform(0.1, 1, images).astype(np.float32)
        self.first, self.second = generator.integers(0, templates, (2, 500))
        self.write(
            "face_tid_mid.txt",
            [f"{i}.jpg {7 * t + 3} {m}" for i, (t, m) in enumerate(zip(self.template, self.media, strict=True))],
        )
        self.issame = self.person[self.first] == self.person[self.second]
        rows = zip(self.first, self.second, self.issame, strict=True)
        self.write("template_pair_label.txt", [f"{7 * a + 3} {7 * b + 3} {int(same)}" for a, b, same in rows])
        landmarks = " ".join(["40.5", "50", "70", "50", "55", "70", "42", "90", "70", "90"])
        self.write("name_5pts_score.txt", [f"{i}.jpg {landmarks} {score:.6f}" for i, score in enumerate(self.scores)])
        # The galleries have one template per person, listed once per image; the other templates are probes.
        for name, part in (("S1", range(0, people // 2)), ("S2", range(people // 2, people))):
            self.write_csv(f"1N_gallery_{name}.csv", [template for template in part for _ in range(2)])
        self.write_csv("1N_probe_mixed.csv", range(people, templates))
        self.people = people

    def write(self, name: str, lines: list[str]) -> None:
        (self.folder / "meta" / f"ijbb_{name}").write_text("\n".join(lines) + "\n")

    def write_csv(self, name: str, templates) -> None:
        self.write(
            name, ["TEMPLATE_ID,SUBJECT_ID,FILENAME", *(f"{7 * t + 3},{900 + self.person[t]},img/{t}.jpg" for t in templates)]
        )

    @property
    def source(self) -> ImageFeatures:
        return ImageFeatures(ArrayRows(self.features), ArrayRows(self.flipped), self.scores)

    def plain_templates(self, setting: Setting) -> np.ndarray:
        """Image by image, media by media."""
        rows = []
        for template in range(len(self.person)):
            medias: dict[int, list[np.ndarray]] = {}
            for image in np.flatnonzero(self.template == template):
                feature = self.features[image].astype(np.float64)
                if setting.flip:
                    feature = feature + self.flipped[image]
                if not setting.keep_norm:
                    feature = feature / math.sqrt(sum(feature**2))
                if setting.detector_score:
                    feature = feature * float(self.scores[image])
                medias.setdefault(self.media[image], []).append(feature)
            total = sum(sum(images) / len(images) for images in medias.values())
            rows.append(total / math.sqrt(sum(total**2)))
        return np.array(rows)


def compare(meta: Meta, source: ImageFeatures, setting: Setting) -> Roc:
    """One-to-one comparison."""
    meta.need(meta.images_file, meta.pairs_file)
    return verify_templates(pool_templates(meta.images(), source, setting), meta.pairs())


@pytest.fixture
def release(tmp_path) -> Release:
    return Release(tmp_path / "IJBB")


# -------------------------------------------------------------------------------------------------- figures


@needs_golden
@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)
def test_tar_equals_the_authors_code(setting):
    arrays = read_feature_file(GOLDEN / "ijb/features.npz")
    source = ImageFeatures(arrays["features"], arrays["features_flip"], arrays["scores"])
    roc = compare(Meta(GOLDEN / "ijb/meta", "IJBB"), source, setting)
    expected = json.loads((GOLDEN / "ijb/expected.json").read_text())[setting.name]
    assert len(expected) == 6
    for far, tar in expected.items():
        assert roc.tar_at_far(float(far)) == pytest.approx(tar, abs=1e-9)


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)
@pytest.mark.parametrize("rows_at_once", [256, 17])
def test_templates_equal_a_plain_loop(release, setting, rows_at_once, monkeypatch):
    monkeypatch.setattr(ijb, "_ROWS_AT_ONCE", rows_at_once)
    templates = pool_templates(release.meta.images(), release.source, setting)
    np.testing.assert_array_equal(templates.ids, 7 * np.arange(40) + 3)
    np.testing.assert_allclose(templates.features, release.plain_templates(setting), rtol=0, atol=1e-13)


@pytest.mark.parametrize("cells_per_pair", [0, 10**9])  # listed products, all products
@pytest.mark.parametrize("pairs_at_once", [1 << 20, 37])
def test_pair_scores_equal_a_plain_loop(cells_per_pair, pairs_at_once, monkeypatch):
    monkeypatch.setattr(ijb, "_DENSE_CELLS_PER_PAIR", cells_per_pair)
    monkeypatch.setattr(ijb, "_PAIRS_AT_ONCE", pairs_at_once)
    generator = np.random.default_rng(1)
    features, (i, j) = generator.normal(size=(50, 24)), generator.integers(3, 47, (2, 700))
    expected = [sum(features[a] * features[b]) for a, b in zip(i, j, strict=True)]
    np.testing.assert_allclose(pair_scores(features, i, j), expected, rtol=0, atol=1e-13)


def test_large_template_numbers_are_found_too():
    templates = Templates(np.array([5, 2**40, 2**41]), np.eye(3))
    np.testing.assert_array_equal(templates.rows(np.array([2**41, 5]), str), [2, 0])
    with pytest.raises(UserError, match="1: template 6 has no images"):
        templates.rows(np.array([5, 6]), str)


def test_one_to_many_is_the_mean_over_both_galleries(release):
    metrics, searches = identify(release.meta, pool_templates(release.meta.images(), release.source, Setting()))
    features, person, half = release.plain_templates(Setting()), release.person, release.people // 2
    probes = np.arange(release.people, 40)
    expected: dict[str, list[float]] = {"rank1": [], "rank5": [], "tpir@fpir=0.1": []}
    for gallery in (np.arange(half), np.arange(half, release.people)):
        scores = features[probes] @ features[gallery].T
        mated = np.isin(person[probes], gallery)
        own = np.array([scores[row, list(gallery).index(person[p])] for row, p in enumerate(probes) if mated[row]])
        place = 1 + (scores[mated] > own[:, None]).sum(axis=1)
        strangers = sorted(scores[~mated].max(axis=1), reverse=True)
        expected["rank1"].append((place <= 1).mean())
        expected["rank5"].append((place <= 5).mean())
        expected["tpir@fpir=0.1"].append((own > strangers[int(0.1 * len(strangers))]).mean())
    for name, values in expected.items():
        assert metrics[name] == pytest.approx(np.mean(values), abs=1e-12), name
    assert metrics["probes"] == len(probes) and len(searches) == 2
    together = search(features[probes], person[probes], features[: release.people], person[: release.people])
    assert metrics["pooled_rank1"] == together.rank_rate(1)


def test_intervals_contain_the_figure_and_shrink_with_the_number_of_pairs():
    generator = np.random.default_rng(2)
    widths = []
    for pairs in (400, 40_000):
        issame = np.arange(pairs) % 2 == 0
        roc = roc_curve(generator.normal(size=pairs) + 2 * issame, issame)
        low, high = tar_interval(roc, 0.01, 400)
        assert low <= roc.tar_at_far(0.01) <= high
        widths.append(high - low)
    assert widths[1] < widths[0] / 4  # a hundred times the pairs: about a tenth


def test_tar_interval_agrees_with_resampling_pair_by_pair():
    generator = np.random.default_rng(3)
    same, different = generator.normal(1.5, 1, 300), generator.normal(0, 1, 2000)
    roc = roc_curve(np.concatenate([same, different]), np.arange(2300) < 300)
    drawn = []
    for _ in range(1500):
        threshold = np.sort(generator.choice(different, 2000))[::-1][20]
        drawn.append((generator.choice(same, 300) > threshold).mean())
    np.testing.assert_allclose(tar_interval(roc, 0.01, 4000), np.quantile(drawn, [0.025, 0.975]), atol=0.02)


def test_accuracy_interval_agrees_with_resampling_pair_by_pair():
    generator = np.random.default_rng(4)
    issame = np.arange(400) % 2 == 0
    first = generator.normal(size=(400, 8))
    second = np.where(issame[:, None], first + 1.1 * generator.normal(size=first.shape), generator.normal(size=first.shape))
    rows = np.stack([first, second], axis=1)
    drawn = []
    for _ in range(300):
        chosen = np.concatenate([generator.integers(start, start + 40, 40) for start in range(0, 400, 40)])
        drawn.append(ten_fold(rows[chosen].reshape(800, 8), issame[chosen]).accuracy)
    interval = accuracy_interval(ten_fold(rows.reshape(800, 8), issame), 300)
    np.testing.assert_allclose(interval, np.quantile(drawn, [0.025, 0.975]), atol=0.012)


# -------------------------------------------------------------------------------------------------- alignment


def test_alignment_is_the_least_squares_similarity():
    generator = np.random.default_rng(5)
    rows, columns = np.mgrid[:300, :320]
    photo = np.stack([rows % 256, columns % 256, (rows + columns) % 256], -1).astype(np.uint8)
    photo = cv2.GaussianBlur(photo, (0, 0), 5)
    for number in range(20):
        landmarks = ARCFACE_TEMPLATE * generator.uniform(0.5, 2) + generator.normal(0, 8, (5, 2)) + generator.uniform(0, 100, 2)
        if number == 0:
            landmarks = landmarks[:, ::-1]  # mirrored: the best similarity is still no reflection
        # (x, y) -> (a x - b y + c, b x + a y + d), solved for a, b, c, d.
        x, y, one, zero = landmarks[:, 0], landmarks[:, 1], np.ones(5), np.zeros(5)
        system = np.concatenate([np.stack([x, -y, one, zero], 1), np.stack([y, x, zero, one], 1)])
        a, b, c, d = np.linalg.lstsq(system, ARCFACE_TEMPLATE.T.ravel(), rcond=None)[0]
        expected = cv2.warpAffine(photo, np.array([[a, -b, c], [b, a, d]]), (112, 112), borderValue=0.0)
        assert np.abs(align_face(photo, landmarks, "photo").astype(int) - expected).max() <= 1


@pytest.mark.parametrize("landmarks", [np.ones((5, 2)), np.ones((4, 2)), np.full((5, 2), np.nan), np.full((5, 2), np.inf)])
def test_landmarks_that_determine_no_transform_are_refused(landmarks):
    with pytest.raises(UserError, match=r"^photo: the landmarks coincide or are not finite"):
        align_face(np.zeros((112, 112, 3), np.uint8), landmarks, "photo")


@pytest.mark.parametrize("name", ["../secret.jpg", "/etc/passwd", "a/../../secret.jpg"])
def test_image_lists_stay_in_their_folder(release, name):
    photo = cv2.imencode(".jpg", np.full((112, 112, 3), 90, np.uint8))[1].tobytes()
    (release.folder / "loose_crop" / "a").mkdir(parents=True)
    (release.folder / "secret.jpg").write_bytes(photo)
    (release.folder / "loose_crop/1.jpg").write_bytes(photo)
    lines = release.meta.images_file.read_text().splitlines()
    release.write("face_tid_mid.txt", [f"{name} 1 1", *lines[1:]])
    crops = LooseCrops(release.folder / "loose_crop", release.meta.images(), np.tile(ARCFACE_TEMPLATE, (300, 1, 1)))
    with pytest.raises(UserError, match=r"face_tid_mid\.txt: image 1: .* is not a path inside the folder"):
        crops.load(0)
    assert crops.load(1).shape == (112, 112, 3)


# -------------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize("text", ["1 2 3\n4 5 6\n", "1 2 3\n4 5 6", "\n1  2\t3 \r\n\r\n 4 5 6\r\n\n"])
def test_numbers_between_any_whitespace(text, tmp_path):
    (tmp_path / "a.txt").write_bytes(text.encode())
    np.testing.assert_array_equal(read_numbers(tmp_path / "a.txt", 3, "three numbers"), [[1, 2, 3], [4, 5, 6]])


def test_numbers_of_any_length(tmp_path):
    generator = np.random.default_rng(6)
    table = generator.integers(0, 10 ** generator.integers(1, 18, (60_000, 3)))
    np.savetxt(tmp_path / "a.txt", table, fmt="%d")
    np.testing.assert_array_equal(read_numbers(tmp_path / "a.txt", 3, "three numbers"), table)
    (tmp_path / "empty.txt").write_text("\n")
    assert read_numbers(tmp_path / "empty.txt", 3, "three numbers").shape == (0, 3)


@pytest.mark.parametrize(
    "line", ["1 2", "1 2 3 4", "1 2 x", "1.0 2 3", "-1 2 3", "1 2 nan", "1 2 3\x00", f"1 2 {10**19}", "1 2 é"]
)
def test_other_lines_are_named(line, tmp_path):
    (tmp_path / "a.txt").write_text("1 2 0\n" * 45_000 + line + "\n1 2 0\n", encoding="latin-1")
    with pytest.raises(UserError, match=r"a\.txt: line 45001: .* is not three numbers"):
        read_numbers(tmp_path / "a.txt", 3, "three numbers")


def test_tables_that_are_wrong_throughout_are_refused(tmp_path):
    (tmp_path / "a.txt").write_text("1 2\n" * 10)
    with pytest.raises(UserError, match=r"a\.txt: line 1: '1 2' is not three numbers"):
        read_numbers(tmp_path / "a.txt", 3, "three numbers")
    with pytest.raises(UserError, match=r"none\.txt: cannot be read"):
        read_numbers(tmp_path / "none.txt", 3, "three numbers")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_feature_files_are_read_by_blocks(save, release, tmp_path):
    save(tmp_path / "f.npz", features=release.features, features_flip=release.flipped.astype(np.float64), scores=release.scores)
    arrays = read_feature_file(tmp_path / "f.npz")
    np.testing.assert_array_equal(arrays["features"].read(10, 25), release.features[10:25])
    np.testing.assert_array_equal(arrays["features_flip"].read(290, 400), release.flipped[290:])
    np.testing.assert_array_equal(arrays["scores"], release.scores)


# -------------------------------------------------------------------------------------------------- bad input


def judge(release: Release, **changes) -> None:
    arrays = {"features": release.features, "flipped": release.flipped, "scores": release.scores, "setting": Setting(), **changes}
    features, flipped = (None if arrays[name] is None else ArrayRows(arrays[name], name) for name in ("features", "flipped"))
    compare(release.meta, ImageFeatures(features, flipped, arrays["scores"]), arrays["setting"])


def test_features_that_do_not_fit_are_refused(release):
    judge(release)
    with pytest.raises(UserError, match="299 rows for 300 images"):
        judge(release, features=release.features[1:])
    with pytest.raises(UserError, match=r"flipped: shape \(299, 16\), but 'features' has \(300, 16\)"):
        judge(release, flipped=release.flipped[1:])
    with pytest.raises(UserError, match="use N1D1F0"):
        judge(release, flipped=None)
    judge(release, flipped=None, setting=Setting(flip=False))
    with pytest.raises(UserError, match="use N1D0F1"):
        judge(release, scores=None)
    with pytest.raises(UserError, match="detector scores: float32 of shape"):
        judge(release, scores=release.scores[1:])
    with pytest.raises(UserError, match="int64 of shape"):
        judge(release, features=np.ones((300, 16), np.int64))


@pytest.mark.parametrize("name", ["features", "flipped"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("setting", [Setting(), Setting(keep_norm=False)])
def test_features_that_are_not_finite_are_named(release, name, value, setting):
    array = getattr(release, name).copy()
    array[123, 4] = value
    with pytest.raises(UserError, match=f"{name}: row 123 is not finite"):
        judge(release, **{name: array}, setting=setting)


def test_bad_meta_is_named(release):
    release.write("template_pair_label.txt", ["3 10 1", "3 11 0"])
    with pytest.raises(UserError, match=r"template_pair_label\.txt: line 2: template 11 has no images"):
        judge(release)
    release.write("template_pair_label.txt", ["3 10 1", "3 10 2"])
    with pytest.raises(UserError, match=r"template_pair_label\.txt: line 2: the pair is marked 2"):
        judge(release)
    release.write("template_pair_label.txt", ["3 10 1", "3 17 1"])
    with pytest.raises(UserError, match="2 same and 0 different"):
        judge(release)
    release.write("face_tid_mid.txt", ["1.jpg 3 4", "2.jpg three 4"])
    with pytest.raises(UserError, match=r"line 2: '2.jpg three 4'"):
        judge(release)
    release.write("face_tid_mid.txt", ["1.jpg 3 4", "2.jpg 3"])
    with pytest.raises(UserError, match=r"line 2: '2.jpg 3' is not image, template, media"):
        judge(release)


def test_landmarks_must_be_of_the_same_images(release):
    images = release.meta.images()
    landmarks, scores = release.meta.landmarks(images)
    assert landmarks.shape == (300, 5, 2) and landmarks[0, 0].tolist() == [40.5, 50.0]
    np.testing.assert_allclose(scores, release.scores, atol=1e-6)
    lines = release.meta.landmarks_file.read_text().splitlines()
    for change, message in (
        (lines[:-1], "299 images, but 300"),
        ([lines[1], lines[0], *lines[2:]], "image 1 is 1.jpg, but 0.jpg"),
        ([lines[0] + " 1", *lines[1:]], "line 1: .* is not image, ten coordinates, score"),
        ([lines[0].replace("40.5", "left"), *lines[1:]], "left"),
        ([*lines[:4], lines[4].replace("40.5", "nan"), *lines[5:]], "line 5: .* is not image, .*finite numbers"),
    ):
        release.write("name_5pts_score.txt", change)
        with pytest.raises(UserError, match=message):
            release.meta.landmarks(images)


def test_a_missing_file_is_reported_with_everything_that_was_looked_for(release):
    with pytest.raises(UserError, match=r"ijbc_face_tid_mid.txt \(missing\).*contains files of IJBB: give --target IJBB"):
        compare(Meta(release.folder / "meta", "IJBC"), release.source, Setting())
    release.meta.pairs_file.unlink()
    with pytest.raises(UserError, match=r"ijbb_face_tid_mid.txt \(found\), ijbb_template_pair_label.txt \(missing\)"):
        judge(release)


def test_galleries_that_contradict_themselves_are_refused(release):
    templates = pool_templates(release.meta.images(), release.source, Setting())
    release.write_csv("1N_gallery_S2.csv", range(3, release.people))
    with pytest.raises(UserError, match="subject 903 is in both galleries"):
        identify(release.meta, templates)
    release.write("1N_gallery_S2.csv", ["TEMPLATE_ID,SUBJECT_ID", "3,1", "3,2"])
    with pytest.raises(UserError, match=r"line \d+: template 3 is listed with two subjects"):
        identify(release.meta, templates)
    release.write("1N_gallery_S2.csv", ["TEMPLATE_ID,SUBJECT_ID", "3,1", "x,2"])
    with pytest.raises(UserError, match="line 3: 'x,2' is not"):
        identify(release.meta, templates)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"other": np.eye(3)}, "contains no array 'features'"),
        ({"features": np.array([object()])}, "Object arrays|object"),
        ({"features": np.asfortranarray(np.ones((4, 3)))}, "column order"),
        ({"features": np.ones(4)}, r"shape \(4,\)"),
    ],
)
def test_other_feature_files_are_refused(arrays, message, tmp_path):
    np.savez(tmp_path / "f.npz", **arrays)
    with pytest.raises(UserError, match=message):
        read_feature_file(tmp_path / "f.npz")


def test_files_other_than_feature_files_are_refused(release, tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        read_feature_file(tmp_path / "none.npz")
    (tmp_path / "text.npz").write_text("features")
    with pytest.raises(UserError, match="cannot be read"):
        read_feature_file(tmp_path / "text.npz")
    np.savez(tmp_path / "f.npz", features=release.features)
    whole = (tmp_path / "f.npz").read_bytes()
    for length in range(0, len(whole), 397):
        (tmp_path / "cut.npz").write_bytes(whole[:length])
        with pytest.raises(UserError):
            read_feature_file(tmp_path / "cut.npz")


def test_settings_are_named():
    assert [setting.name for setting in SETTINGS][:2] == ["N1D1F1", "N1D1F0"] and len({s.name for s in SETTINGS}) == 8
    assert Setting.parse("n0D1F0") == Setting(keep_norm=False, flip=False)
    for name in ("N1D1", "N2D1F1", "all", "D1N1F1"):
        with pytest.raises(UserError, match="is not a setting"):
            Setting.parse(name)
