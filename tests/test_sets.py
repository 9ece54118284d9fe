"""Several data sets at once, folders and lists: the same batches and the same training as one packed set, and clear errors."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from recognition.build import open_dataset, resolve_config
from recognition.data.batch import BatchMaker, BatchSpec
from recognition.data.dataset import UNREADABLE, FaceDataset
from recognition.data.fingerprint import difference, fingerprint
from recognition.data.pack.listing import write_classes
from recognition.data.records.format import RecordError
from recognition.data.records.writer import RecordWriter
from recognition.data.sets.opening import open_faces, training_set
from recognition.data.sets.union import UnionFaces
from tests.commands import metrics, train
from utils.config import from_base
from utils.dist import World
from utils.errors import UserError

CUT, NAMES = 52, [f"person {number}" for number in range(13)]


@pytest.fixture(scope="module")
def parts(demo_set: Path, tmp_path_factory) -> tuple[str, str]:
    """The demo set, cut in two; each part has a classes.csv with the names of its people."""
    whole, folder = FaceDataset(demo_set), tmp_path_factory.mktemp("parts")
    for name, images in (("first", range(CUT)), ("second", range(CUT, len(whole)))):
        (folder / name).mkdir()
        with RecordWriter(folder / name / "train.rec") as writer:
            for key, image in enumerate(images):
                payload, label = whole.read(image)
                writer.write(key, label, payload)
        labels = whole.labels()[list(images)]
        write_classes(folder / name, NAMES[: labels.max() + 1], np.bincount(labels).tolist())
    return str(folder / "first"), str(folder / "second")


@pytest.fixture(scope="module")
def photos(demo_set: Path, tmp_path_factory) -> Path:
    """The demo set as a folder per person, with blanks in their names."""
    whole, folder = FaceDataset(demo_set), tmp_path_factory.mktemp("photos")
    for image in range(len(whole)):
        payload, label = whole.read(image)
        person = folder / f"person {label:02d}"
        person.mkdir(exist_ok=True)
        (person / f"{image:03d}.jpg").write_bytes(payload)
    return folder


def _batches(dataset: FaceDataset, epoch: int = 0, world: int = 1, **changes) -> list:
    """Labels and pixels of an epoch's batches, from all ranks together."""
    config = from_base(rec="x", batch_size=12 // world, num_classes=dataset.num_classes, augmentation="none", **changes)
    makers = [BatchMaker(dataset, BatchSpec.of(config, rank, world)) for rank in range(world)]
    result = []
    for number in range(makers[0].steps):
        made = [maker.fill(epoch, number, np.empty(maker.spec.image_shape, np.uint8)) for maker in makers]
        labels = np.concatenate([batch.labels_B for batch in made])
        result.append((labels.tolist(), np.concatenate([batch.images_VBHWC for batch in made], axis=1).tobytes()))
    return result


@pytest.mark.parametrize("shuffle", ["full", "none", "windowed"])
def test_a_set_cut_in_two_makes_the_same_batches(demo_set, parts, shuffle):
    cut = training_set(from_base(rec=parts, rec_identities="by_name"))
    assert cut.num_classes == 13 and len(cut) == 104
    assert _batches(cut, 1, shuffle=shuffle) == _batches(FaceDataset(demo_set), 1, shuffle=shuffle)


def test_folder_and_list_make_the_same_batches(demo_set, photos):
    expected = _batches(FaceDataset(demo_set), 2, views=2)
    assert _batches(open_faces(photos), 2, views=2) == expected
    files = sorted(photos.rglob("*.jpg"))
    people = sorted(path.name for path in photos.iterdir() if path.is_dir())
    lines = [f'"{file.relative_to(photos)}"\t{people.index(file.parent.name)}\n' for file in files]
    (photos / "list.txt").write_text("".join(lines))
    assert _batches(open_faces(photos / "list.txt"), 2, views=2) == expected
    assert _batches(open_faces(photos), 2, shuffle="windowed") == _batches(FaceDataset(demo_set), 2, shuffle="windowed")


def test_proportions_visit_each_set_as_often_as_they_say(demo_set, parts):
    config = from_base(rec=parts, rec_proportions=(0.5, 2.25))
    union = training_set(config)
    assert union.num_classes == 7 + 13  # separate people
    counted = []
    for epoch in (0, 1):
        order = BatchMaker(union, BatchSpec.of(from_base(rec="x", batch_size=1, num_classes=20))).order
        images = order(epoch, np.arange(order.length))
        counts = np.bincount(images, minlength=104)
        assert order.length == 26 + 117 and counts[:CUT].sum() == 26 and counts[:CUT].max() == 1
        assert counts[CUT:].min() == 2 and counts[CUT:].max() == 3 and counts[CUT:].sum() == 117
        counted.append(counts)
    assert (counted[0][:CUT] != counted[1][:CUT]).any() and (counted[0][CUT:] != counted[1][CUT:]).any()
    whole = _batches(union)
    assert [_batches(union, world=world) for world in (2, 3, 4)] == [whole] * 3
    assert len(whole) == 143 // 12


def test_training_on_the_cut_set_resumes_and_equals_the_uncut_one(demo_set, parts, tmp_path):
    common = ["tests/tiny_config", "max_steps=4", f"val_dir={demo_set}"]
    assert train(*common, f"rec={demo_set}", f"output={tmp_path}/whole").returncode == 0
    cut = [*common, f"rec={','.join(parts)}", "rec_identities=by_name", f"output={tmp_path}/cut"]
    for steps in ("max_steps=2", "max_steps=4"):
        finished = train(*cut, steps)
        assert finished.returncode == 0, finished.stderr
    assert "first (by_name) + " in finished.stdout and "resumed from" in finished.stdout
    figures = [
        [(line["step"], line["loss"], line["gradient_norm"]) for line in metrics(tmp_path / run)] for run in ("whole", "cut")
    ]
    assert figures[0] == figures[1] and len(figures[0]) == 4


def test_possibly_the_same_person(demo_set, parts, photos):
    union = training_set(from_base(rec=(*parts, str(photos)), rec_identities=("by_name", "by_name", "overlapping")))
    group_C, related_PP = union.possibly_same
    assert union.num_classes == 13 + 13
    related = related_PP[group_C][:, group_C]
    assert related[:13, 13:].all() and related[13:, :13].all() and not related[:13, :13].any() and not related[13:, 13:].any()
    separate, overlapping = (training_set(from_base(rec=parts, rec_identities=r)) for r in ("separate", "overlapping"))
    assert separate.possibly_same is None
    changed = difference(fingerprint(separate), fingerprint(overlapping))
    assert changed.startswith("which identities may be the same person")


def test_joining_by_map(demo_set, parts, photos, tmp_path):
    people = tmp_path / "people.csv"
    people.write_text("label,name\n3,person 1\n0,nobody else\n")
    union = training_set(from_base(rec=(parts[0], str(photos)), rec_identities=("by_name", str(people))))
    assert union.num_classes == 7 + 12
    labels = union.labels()[CUT:]
    assert set(labels[24:32]) == {1} and union.read(CUT + 24)[1] == 1 and set(labels[:8]) == {7}


def test_damaged_files_are_treated_like_damaged_records(photos, tmp_path):
    damaged = photos / "person 03" / "024.jpg"
    payload = damaged.read_bytes()
    try:
        damaged.write_bytes(payload[:400])
        faces = open_faces(photos)
        with pytest.raises(RecordError, match=rf"^{damaged}: the image \(400 bytes\) cannot be decoded: it is truncated"):
            _batches(faces, shuffle="none")
        batches = _batches(open_faces(photos, strict=False), shuffle="none", on_error="skip")
        assert [labels.count(UNREADABLE) for labels, _ in batches] == [0, 0, 1, 0, 0, 0, 0, 0]
    finally:
        damaged.write_bytes(payload)


def _open(rec, **changes):
    config = from_base(rec=rec, **changes)
    return resolve_config(config, open_dataset(config), World(0, 1, 0, "cpu"))


def _problem(rec, **changes) -> str:
    with pytest.raises(UserError) as raised:
        _open(rec, **changes)
    assert len(raised.value.args) == 1
    return str(raised.value)


def test_mistakes_are_named(demo_set, parts, photos, tmp_path):
    first = parts[0]
    assert "rec_proportions=(1.0,): must have one number for each data set" in _problem(parts, rec_proportions=(1.0,))
    assert "must have one number for each data set" in _problem(first, rec_proportions=(1.0,))
    assert "must have one entry for each data set" in _problem(parts, rec_identities=("separate",) * 3)
    assert "reads each image once per epoch" in _problem(parts, rec_proportions=(1, 2), shuffle="windowed")
    assert "rec_proportions=0.001 selects none of 52 images; raise it" in _problem(parts, rec_proportions=(1, 0.001))
    assert f"{first}: is given twice" in _problem((first, first + "/"))
    assert "needs a classes.csv next to it" in _problem((first, str(demo_set)), rec_identities="by_name")
    maps = {
        "wrong header\n": "line 1 must be label,name",
        "label,name\n13,a\n": "line 2: .* has no label 13; its labels are 0 … 12",
        "label,name\n1,a\n1,b\n": "line 3: label 1 is listed twice",
        "label,name\n1,a\n2,a\n": "line 3: 'a' is also on line 2",
        "label,name\nx,a\n": "line 2: expected label,name",
    }
    for text, expected in maps.items():
        (tmp_path / "map.csv").write_text(text)
        with pytest.raises(UserError, match=expected):
            _open(parts, rec_identities=("separate", str(tmp_path / "map.csv")))
    small = tmp_path / "small"
    small.mkdir()
    for name in ("train.rec", "train.idx"):
        (small / name).write_bytes((Path(first) / name).read_bytes())
    (small / "property").write_text("13,96,96\n")
    Path(first, "property").write_text("13,112,112\n")
    assert "different image sizes" in _problem((first, str(small)))


def test_mistakes_in_folders_and_lists_are_named(photos, tmp_path):
    flat = photos / "person 00"
    assert "contains images but no subfolders" in _problem(str(flat))
    odd = tmp_path / "odd" / "ada"
    odd.mkdir(parents=True)
    cv2.imwrite(str(odd / "1.png"), np.zeros((112, 92, 3), np.uint8))
    problem = _problem(str(tmp_path / "odd"))
    assert "1.png: the image has 92x112 pixels, expected 112x112; align the faces: python -m recognition.data.pack" in problem
    assert "expected a path and a label" in _problem_of_list(tmp_path, "person 00/000.jpg x\n")
    missing = _problem_of_list(tmp_path, "nobody/1.jpg 0\nnobody/2.jpg 1\n")
    assert "line 1: " in missing and "nobody/1.jpg is not a file (2 of 2 are missing)" in missing
    assert "contains no image" in _problem_of_list(tmp_path, "\n")


def _problem_of_list(folder: Path, text: str) -> str:
    (folder / "list.txt").write_text(text)
    return _problem(str(folder / "list.txt"))


def test_a_union_is_closed_for_more_than_sixty_sets(demo_set):
    member = FaceDataset(demo_set)
    with pytest.raises(UserError, match="at most 60"):
        UnionFaces([member] * 61, ["separate"] * 61, [1.0] * 61)
