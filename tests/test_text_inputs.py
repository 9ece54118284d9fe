"""Text that people and other programs write: byte-order marks, line ends, blank lines, encodings, spaces in paths, NaN."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from eval.present.tables import read_results
from eval.protocols.ijb_files import Meta
from eval.protocols.scface import _read_landmarks
from eval.report.read import read_run
from recognition.data import RecordWriter
from recognition.data.dataset import FaceDataset
from recognition.data.pack.commands.pairs import Pair, read_pairs
from recognition.data.pack.commands.subset import listed_labels
from recognition.data.pack.landmarks import read_landmarks
from recognition.data.pack.listing import ImageList, read_classes
from recognition.data.records.index import load_index
from recognition.monitor.progress import _drop_after
from tests.pack_tools import pack
from tests.shared_files import ROOT
from utils import config
from utils.errors import UserError
from utils.files import numbered_lines
from utils.number_table import read_numbers

POINTS = " ".join(str(10 + n) for n in range(10))


def _meta(name: str, method: str) -> Callable[[Path], object]:
    def read(path: Path) -> object:
        path.rename(path.parent / name)
        return getattr(Meta(path.parent, "IJBB"), method)()

    return read


def _property(path: Path) -> object:
    path.rename(path.parent / "property")
    dataset = FaceDataset.__new__(FaceDataset)
    dataset.path = path.parent
    return dataset.image_size


def _scface(path: Path) -> object:
    path.rename(path.parent / "all.txt")
    return _read_landmarks(path.parent)


def _image_list(path: Path) -> object:
    images = ImageList(path, 2)
    return [images.path_of(0, 0), images.path_of(1, 1)]


TEXTS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "lines": ("a\nb c\n", lambda path: [text for _, text in numbered_lines(path)]),
    "numbers": ("1 2\n3 4\n", lambda path: read_numbers(path, 2, "two numbers")),
    "index": ("0\t0\n1\t44\n", load_index),
    "property": ("8631,112,112\n", _property),
    "LFW pairs": ("1\t1\nAda\t1\t2\nAda\t1\tBo\t2\n", read_pairs),
    "LFW pairs without header": ("Ada\t1\t2\nAda\t1\tBo\t2\n", read_pairs),
    "pairs by path": ("a/1.jpg a/2.jpg 1\na/1.jpg b/1.jpg 0\n", read_pairs),
    "landmarks": (f"a/1.jpg {POINTS}\nb/2.jpg {POINTS} 0.9\n", read_landmarks),
    "landmarks as CSV": (f"path,x\na/1.jpg,{POINTS.replace(' ', ',')}\n", read_landmarks),
    "SCface": (f"001_frontal {POINTS}\n002_frontal {POINTS}\n", _scface),
    "classes": ("label,name,images\n0,Ada,3\n1,Bö,2\n", lambda path: read_classes(path, 2)),
    "images": ("image,label,path\n0,0,a.jpg\n1,1,b.jpg\n", _image_list),
    "identities": ("Ada\n2\n", lambda path: listed_labels(path, ["Ada", "Bo", "Cy"])),
    "IJB images": ("1.jpg 1 1\n2.jpg 1 2\n", _meta("ijbb_face_tid_mid.txt", "images")),
    "IJB pairs": ("1 2 1\n1 3 0\n", _meta("ijbb_template_pair_label.txt", "pairs")),
    "IJB probes": ("TEMPLATE_ID,SUBJECT_ID\n1,2\n2,4\n", _meta("ijbb_1N_probe_mixed.csv", "probes")),
}
STRICT = {"images"}  # blank lines are refused, by number


def _same(a: object, b: object) -> bool:
    if hasattr(a, "__dataclass_fields__"):
        names = [name for name in a.__dataclass_fields__ if name not in ("path", "where")]
        return all(_same(getattr(a, name), getattr(b, name)) for name in names)
    if isinstance(a, dict):
        return list(a) == list(b) and all(_same(a[key], b[key]) for key in a)  # type: ignore[call-overload, index]
    if isinstance(a, list) and a and isinstance(a[0], Pair):
        return len(a) == len(b) and all(map(_same, a, b))  # type: ignore[arg-type]
    return bool(np.array_equal(a, b))  # type: ignore[arg-type]


def _read(folder: Path, kind: str, content: bytes) -> object:
    folder.mkdir()
    (folder / "file.txt").write_bytes(content)
    return TEXTS[kind][1](folder / "file.txt")


@pytest.mark.parametrize("kind", TEXTS)
def test_byte_order_marks_and_line_ends_change_nothing(kind, tmp_path):
    plain = TEXTS[kind][0].encode()
    wanted = _read(tmp_path / "plain", kind, plain)
    crlf = plain.replace(b"\n", b"\r\n")
    variants = {
        "mark": b"\xef\xbb\xbf" + plain,
        "crlf": crlf,
        "both": b"\xef\xbb\xbf" + crlf,
        "open": plain.rstrip(),
        "open crlf": crlf.rstrip(),
        "blank at the end": plain + b"\n\n",
        "blank crlf": crlf + b"\r\n\r\n",
    }
    if kind not in STRICT:
        first, _, rest = plain.partition(b"\n")
        variants["blank between"] = first + b"\n\n" + rest
    for name, content in variants.items():
        assert _same(wanted, _read(tmp_path / name, kind, content)), name


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("kind", TEXTS)
def test_utf_16_is_one_clear_line(kind, encoding, tmp_path):
    with pytest.raises(UserError, match=r"^[^\n]*: line 1: is UTF-16 text, or not text; save the file as UTF-8$"):
        _read(tmp_path / "a", kind, TEXTS[kind][0].encode(encoding))


@pytest.mark.parametrize("kind", sorted(TEXTS.keys() - {"classes", "images"}))  # names of files may be any bytes
def test_other_encodings_are_refused_with_the_line(kind, tmp_path):
    with pytest.raises(UserError, match=r": line [23]: "):
        _read(tmp_path / "a", kind, TEXTS[kind][0].split("\n")[0].encode() + b"\n\nM\xfcller 1 2\n")


def test_a_line_without_end_is_refused(tmp_path):
    (tmp_path / "a.txt").write_text("x 1\n" + "1" * 1_000_000)
    with pytest.raises(UserError, match=r"a\.txt: line 2: has more than 100,000 characters"):
        list(numbered_lines(tmp_path / "a.txt"))


def test_blank_lines_among_listed_images_are_named(tmp_path):
    (tmp_path / "images.csv").write_text("image,label,path\n0,0,a.jpg\n\n1,1,b.jpg\n")
    with pytest.raises(UserError, match=r"images\.csv: line 3 is blank"):
        ImageList(tmp_path / "images.csv", 2)


@pytest.mark.parametrize(
    ("text", "first", "same"),
    [
        ("Ada 1 2\n", "Ada/Ada_0001", True),
        ("Ada 1 Bo 1\n", "Ada/Ada_0001", False),
        ("Ada Lee\t1\t2\n", "Ada Lee/Ada Lee_0001", True),
        ("a b.jpg\tc.jpg\t0\n", "a b.jpg", False),
        ("1 2 1\n", "1", True),  # by paths, as before
        ("a b.jpg,c d.jpg,0\n", "a b.jpg", False),
        ('path1, path2, same\n"a, b.jpg", c.jpg, 1\n', "a, b.jpg", True),
        ("name,imagenum1,imagenum2,\nAda Lee,1,2,\n", "Ada Lee/Ada Lee_0001", True),
        ("name,imagenum1,name,imagenum2\nAda Lee,1,Bo,1\n", "Ada Lee/Ada Lee_0001", False),
        ("a,b.jpg c,d.jpg 1\n", "a,b.jpg", True),
    ],
)
def test_pairs_without_a_header(text, first, same, tmp_path):
    (tmp_path / "pairs.txt").write_text(text)
    (pair,) = read_pairs(tmp_path / "pairs.txt")
    assert (pair.first, pair.same) == (first, same)


@pytest.mark.parametrize(
    ("kind", "text", "problem"),
    [
        ("pairs by path", "a 1.jpg b.jpg 1\n", "line 1: .*separate with tabs"),
        ("LFW pairs", "1\t1\nAda Lee 1 2\nAda 1 Bo 2\n", "line 2: .*separate with tabs"),
        ("LFW pairs without header", "Ada 1 1\nAda 1 2\nAda 1\n", "line 3: 'Ada 1' is neither `NAME i j`"),
        ("pairs by path", "1 2 1\na.jpg b.jpg 1\nAda 1 2\n", "line 3: 'Ada 1 2' is not `PATH1 PATH2 0|1`"),
        ("landmarks", f"a.jpg {POINTS}\na b.jpg {POINTS}\n", "line 2: .*separate with tabs"),
        ("landmarks", f"a.jpg {POINTS}\nb.jpg {POINTS} nan\n", "line 2: contains a number that is not finite"),
        ("landmarks", f"a.jpg {POINTS.replace('13', 'inf')}\n", "line 1: contains a number that is not finite"),
        ("SCface", f"001_frontal {POINTS.replace('13', 'nan')}\n", "line 1: contains a coordinate that is not finite"),
        ("SCface", f"my face {POINTS}\n", "line 1: .*a name without spaces"),
        ("IJB images", "1.jpg 1 1\n\na b.jpg 1 2\n", "line 3: .*names must not contain spaces"),
        ("IJB pairs", "1 2 1\n\n1 2 7\n", "line 3: the pair is marked 7"),
        ("IJB probes", "A,B\n\n1,2\n1,3\n", "line 4: template 1 is listed with two subjects"),
        ("classes", 'label,name,images\n0,"Ada,3\n', "line 2: is not CSV"),
        ("property", "\n1,x,2\n", "line 2: must contain 'classes,height,width'"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(kind, text, problem, tmp_path):
    with pytest.raises(UserError, match=problem):
        _read(tmp_path / "a", kind, text.encode())


def test_tabs_separate_paths_with_spaces_and_commas(tmp_path):
    tabs = POINTS.replace(" ", "\t")
    (tmp_path / "a.txt").write_text(f"a, b/1 2.jpg\t{tabs}\n")
    assert list(read_landmarks(tmp_path / "a.txt")) == ["a, b/1 2.jpg"]


@pytest.mark.parametrize("score", ["nan", "inf"])
def test_ijb_landmarks_that_are_not_finite(score, tmp_path):
    (tmp_path / "ijbb_face_tid_mid.txt").write_text("1.jpg 1 1\n2.jpg 1 2\n")
    (tmp_path / "ijbb_name_5pts_score.txt").write_text(f"1.jpg {POINTS} 0.9\n\n2.jpg {POINTS} {score}\n")
    meta = Meta(tmp_path, "IJBB")
    with pytest.raises(UserError, match=r"5pts_score\.txt: line 3: .*finite numbers"):
        meta.landmarks(meta.images())


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_json_with_a_byte_order_mark(encoding, tmp_path):
    results = {"lfw": {"accuracy": 0.5, "auc": 0.5}}
    (tmp_path / "results.json").write_text(json.dumps(results), encoding=encoding)
    assert read_results(tmp_path / "results.json") == results
    saved = config.from_base(rec="x")
    saved.save(tmp_path / "config.json")
    (tmp_path / "config.json").write_text((tmp_path / "config.json").read_text(), encoding=encoding)
    assert config.load_json(tmp_path / "config.json") == saved


def test_measurements_with_a_byte_order_mark(tmp_path):
    lines = tmp_path / "metrics.jsonl"
    lines.write_bytes(b'\xef\xbb\xbf{"step": 1, "loss": 2.0}\r\n\r\n{"step": 2, "loss": 1.0}\r\n')
    assert read_run(tmp_path).training["step"].tolist() == [1, 2]
    _drop_after(lines, 1)
    assert read_run(tmp_path).training["step"].tolist() == [1]
    lines.write_bytes(b'{"step": 1}\n\n{"step": x}\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl: line 3: not a measurement"):
        read_run(tmp_path)


def test_an_index_with_a_byte_order_mark_is_correct(tmp_path, capsys):
    with RecordWriter(tmp_path / "train.rec") as writer:
        for key in range(3):
            writer.write(key, float(key), b"x")
    index = tmp_path / "train.idx"
    index.write_bytes(b"\xef\xbb\xbf" + index.read_bytes().replace(b"\n", b"\r\n") + b"\r\n")
    pack("reindex", tmp_path / "train.rec")
    assert "is correct (3 records)" in capsys.readouterr().out


def test_configurations_written_on_windows(tmp_path):
    text = (ROOT / "configs/base.py").read_text()
    file = tmp_path / "mine.py"
    file.write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    assert config.load(str(file), ["rec=x"]).rec == "x"
    file.write_text(text, encoding="utf-16")
    with pytest.raises(UserError, match=r"mine\.py: line 1: is UTF-16 text, or not text; save the file as UTF-8"):
        config.load(str(file), ["rec=x"])
