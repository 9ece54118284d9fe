"""WebP, GIF and TIFF: sizes, pixels, damage, bombs. Folders: which files are read, and how the others are reported."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from eval.commands.embed import image_paths
from eval.protocols.scface import find_scface
from eval.protocols.tinyface import find_tinyface
from recognition.data import FaceDataset, RecordWriter
from recognition.data.pack.commands.align import aligned_path
from recognition.data.pack.commands.pairs import find_image
from recognition.data.pack.face_encoding import FaceFormat
from tests.pack_tools import encoded, pack, picture, write_files
from tests.shared_files import ROOT
from utils import dist
from utils.errors import UserError
from utils.images import ImageHeader, LeftOut, decode_face, decode_face_into, decode_image, find_images, image_names, read_header

FACE = picture(1, 112, 92)


def pillow(form: str, mode: str = "RGB", **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(FACE[:, :, ::-1]).convert(mode).save(buffer, form, **options)
    return buffer.getvalue()


def tiff(order: str = "<", width: int = 92, height: int = 112, **changed: int) -> bytes:
    """Uncompressed RGB. changed: values of tags, such as t259=7, which replace or extend these."""
    pixels = FACE[:, :, ::-1].tobytes()
    bits_at = 8 + len(pixels)
    tags = {256: width, 257: height, 258: bits_at, 259: 1, 262: 2, 273: 8, 277: 3, 278: height, 279: len(pixels)}
    tags |= {int(name[1:]): value for name, value in changed.items()}
    entries = b"".join(struct.pack(f"{order}HHII", tag, *((3, 3) if tag == 258 else (4, 1)), tags[tag]) for tag in sorted(tags))
    start = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", bits_at + 6)
    return start + pixels + struct.pack(f"{order}HHH", 8, 8, 8) + struct.pack(f"{order}H", len(tags)) + entries + bytes(4)


def gif(screen: tuple[int, int], frame: tuple[int, int, int, int] = (0, 0, 92, 112)) -> bytes:
    """The first frame of FACE as a GIF, at a place and with a size that need not be right."""
    whole = KINDS["gif"]
    at = 13 + 3 * 256
    at = whole.index(b"\x2c", at)
    return whole[:6] + struct.pack("<HH", *screen) + whole[10 : at + 1] + struct.pack("<HHHH", *frame) + whole[at + 9 :]


def webp(canvas: tuple[int, int], image: bytes = b"") -> bytes:
    """A lossless WebP with a canvas that need not have the image's size."""
    image = image or KINDS["webp lossless"][12:]
    extended = b"VP8X" + struct.pack("<I", 10) + bytes(4) + b"".join((side - 1).to_bytes(3, "little") for side in canvas)
    return b"RIFF" + struct.pack("<I", 4 + len(extended) + len(image)) + b"WEBP" + extended + image


KINDS = {
    "webp": pillow("WEBP"),
    "webp lossless": pillow("WEBP", lossless=True),
    "webp with Exif": pillow("WEBP", exif=b"Exif\0\0II*\0\x08\0\0\0\0\0"),
    "webp alpha": encoded(np.dstack([FACE, FACE[:, :, :1]]), ".webp"),
    "webp animated": pillow("WEBP", save_all=True, append_images=[Image.new("RGB", (92, 112))]),
    "gif": pillow("GIF"),
    "gif grey": pillow("GIF", "L"),
    "gif animated": pillow("GIF", save_all=True, append_images=[Image.new("RGB", (92, 112))], comment=b"x" * 700),
    "tiff": pillow("TIFF"),
    "tiff LZW": pillow("TIFF", compression="tiff_lzw"),
    "tiff Deflate": pillow("TIFF", compression="tiff_adobe_deflate"),
    "tiff PackBits": pillow("TIFF", compression="packbits"),
    "tiff grey": pillow("TIFF", "L"),
    "tiff bilevel": pillow("TIFF", "1"),
    "tiff palette": pillow("TIFF", "P"),
    "tiff CMYK": pillow("TIFF", "CMYK"),
    "tiff big-endian": tiff(">"),
    "tiff pages": pillow("TIFF", save_all=True, append_images=[Image.new("RGB", (300, 20))]),
}


@pytest.mark.parametrize("name", KINDS)
def test_the_header_and_the_pixels_are_those_of_others(name):
    """Of the first frame or page. Lossy WebP: both use libwebp."""
    data = KINDS[name]
    assert read_header(data) == ImageHeader(name.split()[0], 92, 112)
    wanted = np.array(Image.open(io.BytesIO(data)).convert("RGB"))
    np.testing.assert_array_equal(decode_image(data, "x"), wanted)
    np.testing.assert_array_equal(decode_image(data, "x", "BGR"), wanted[:, :, ::-1])


@pytest.mark.parametrize("name", KINDS)
def test_truncated_files_are_refused(name):
    data = KINDS[name]
    end = data.index(b"II*\0", 8) if name == "tiff pages" else len(data)  # further pages may be missing
    last = 9 if name.startswith("tiff") else 1  # the last bytes are padding, or point to the next page
    for cut in (end - last, 3 * end // 4, end // 2, 100, 30, 12):
        with pytest.raises(UserError, match=r"^x: the image \("):
            decode_image(data[:cut], "x")


@pytest.mark.parametrize("form", ["WEBP", "TIFF", "PNG", "JPEG"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_orientations_are_applied(form, orientation):
    exif = Image.Exif()
    exif[274] = orientation
    data = pillow(form, **({"tiffinfo": {274: orientation}} if form == "TIFF" else {"exif": exif}))
    wanted = np.array(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))
    np.testing.assert_array_equal(decode_image(data, "x"), wanted)


BOMBS = {
    "webp lossy": (b"RIFF\x1e\0\0\0WEBPVP8 " + bytes(7) + b"\x9d\x01\x2a\xff\x3f\xff\x3f" + bytes(12), "268,402,689 pixels"),
    "webp lossless": (b"RIFF\x1e\0\0\0WEBPVP8L" + bytes(4) + b"\x2f\xff\xff\xff\x0f" + bytes(20), "268,435,456 pixels"),
    "webp canvas": (webp((1 << 24, 1 << 24)), "281,474,976,710,656 pixels"),
    "webp frame": (webp((92, 112), b"VP8L" + struct.pack("<I", 18) + b"\x2f\xff\xff\xff\x0f" + bytes(13)), "damaged"),
    "gif screen": (gif((65_535, 65_535)), "4,294,836,225 pixels"),
    "gif frame": (gif((92, 112), (0, 0, 65_535, 65_535)), "damaged at byte"),
    "tiff": (tiff(width=60_000, height=60_000), "3,600,000,000 pixels"),
    "tiff tile": (tiff(t322=60_000, t323=60_000), "tiles of 60000x60000"),
    "tiff strip": (tiff(t278=1 << 31, t279=1 << 31), "damaged"),
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused_before_they_take_memory(name):
    data, problem = BOMBS[name]
    script = (
        "import sys; from utils.images import decode_image\n"
        "try: decode_image(sys.stdin.buffer.read(), 'bomb')\n"
        "except ValueError as error: print(error)\n"
        "print(*[line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')])"
    )
    done = subprocess.run([sys.executable, "-c", script], input=data, capture_output=True, cwd=ROOT, check=True)
    message, peak = done.stdout.decode().splitlines()
    assert problem in message and int(peak) < 300_000, (message, peak)


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"\0\0\0\x1cftypavif" + bytes(20), "it is AVIF, not a JPEG, PNG, WebP, GIF, TIFF"),
        (b"\0\0\0\x1cftypheic" + bytes(20), "it is HEIC, not a"),
        (b"\0\0\0\x0cjP  \r\n\x87\n", "it is JPEG 2000, not a"),
        (b"\xff\x0a" + bytes(20), "it is JPEG XL, not a"),
        (b"II+\0\x08\0" + bytes(20), "it is BigTIFF, not a"),
        (b"RIFF" + bytes(4) + b"WAVEfmt ", "it is not a JPEG"),
        (b"RIFF\x10\0\0\0WEBPJUNK" + bytes(8), "WEBP header is damaged"),
        (KINDS["webp"] + b"", None),
        (pillow("TIFF", compression="jpeg"), "compression 7, which is not supported"),
        (pillow("TIFF", "RGBA"), "save it as RGB without transparency"),
        (pillow("TIFF", "F"), "of 32 bits"),
        (tiff(t262=6), "colours 6"),
        (tiff(t339=3), "not supported"),
        (b"II*\0" + b"\xff" * 4, "TIFF header is truncated"),
        (b"II*\0" + struct.pack("<IH", 8, 0) + bytes(4), "not supported"),
        (gif((91, 112)), "GIF header is damaged"),
        (KINDS["gif"][:20], "GIF header is truncated"),
        (b"GIF89a\1\0\1\0\0\0\0;", "no image at byte 13"),
    ],
)
def test_other_kinds_are_named(data, problem):
    if problem is None:
        assert decode_image(data + b"trailing bytes", "x").shape == (112, 92, 3)
        return
    with pytest.raises(UserError, match=problem):
        decode_image(data, "x")


# ---------------------------------------------------------------------------------------------------- folders

SQUARE = picture(2)
AVIF = b"\0\0\0\x1cftypavif" + bytes(20)


@pytest.fixture
def people(tmp_path: Path) -> Path:
    """Two people. Ada has one image of each kind; next to them lies what cannot be read."""
    source = tmp_path / "people"
    files = {f"Ada/{suffix[1:]}{suffix}": encoded(SQUARE, suffix) for suffix in (".jpg", ".png", ".webp", ".gif", ".tif", ".bmp")}
    files |= {
        "Ada/jfif.JFIF": encoded(SQUARE),
        "Ada/jpe.jpe": encoded(SQUARE),
        "Ada/bare": encoded(SQUARE),
        "Ada/x.0001": encoded(SQUARE, ".webp"),
    }
    files |= {
        "Ada/a.avif": AVIF,
        "Ada/b.avif": AVIF,
        "Ada/notes.txt": b"x",
        "Ada/README": b"x",
        "Ada/deep/1.jpg": encoded(SQUARE),
    }
    files |= {"Bo/1.jpg": encoded(SQUARE), "loose.jpg": encoded(SQUARE)}
    files |= {name: b"x" for name in (".DS_Store", "Ada/Thumbs.db", "Ada/desktop.ini", "Ada/._jpg.jpg", "__MACOSX/Ada/._1.jpg")}
    write_files(source, files)
    (source / "Ada/gone.jpg").symlink_to("nowhere.jpg")
    return source


def test_pack_folder_reads_all_kinds_and_counts_the_rest(people, tmp_path, capsys):
    pack("folder", people, tmp_path / "packed")
    (warning,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert warning.startswith(f"warning: {people}: 7 files were left out: 2 .avif (not supported), ")
    for part in (
        "1 .txt",
        "1 broken link",
        "1 nested folder",
        "1 unrecognised file",
        "1 loose image",
        f"; the first: {people}",
    ):
        assert part in warning
    faces = FaceDataset(tmp_path / "packed")
    assert len(faces) == 11 and faces.num_classes == 2
    for index in range(11):  # insightface's and MXNet's loaders read JPEG and PNG only
        assert read_header(faces.read(index)[0]) == ImageHeader("jpeg", 112, 112)
        assert np.abs(decode_face(faces.read(index)[0], "x", "BGR").astype(int) - SQUARE).mean() < 9  # GIF has 256 colours
    pack("unpack", tmp_path / "packed", tmp_path / "unpacked")
    assert sorted(image_names(tmp_path / "unpacked/Ada"))[-2:] == ["webp.webp.jpg", "x.0001.jpg"]


def test_a_folder_without_readable_images_says_what_it_holds(tmp_path):
    write_files(tmp_path / "people", {"train/n1/1.jpg": encoded(SQUARE), "train/n2/1.jpg": encoded(SQUARE), "test/1.avif": AVIF})
    with pytest.raises(
        UserError, match=r"no folder contains 1 images or more .*; 3 files were left out: 2 nested folders, 1 \.avif"
    ):
        pack("folder", tmp_path / "people", tmp_path / "packed")
    with pytest.raises(UserError, match=r"no images .*; 1 file was left out: 1 \.avif \(not supported\)"):
        image_paths([str(tmp_path / "people/test")])


def test_embed_reads_nested_folders_and_follows_links(people, tmp_path, capsys):
    (people / "Bo/link").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (people / "Bo/loop").symlink_to(people, target_is_directory=True)
    (people / "A").symlink_to(people / "Ada", target_is_directory=True)
    write_files(tmp_path, {"elsewhere/2.png": encoded(SQUARE, ".png")})
    dist.start()
    try:
        found = image_paths([str(people)])
    finally:
        dist.stop()
    names = [str(path.relative_to(people)) for path in found]
    assert (
        len(names) == 14 and {"Ada/bare", "Ada/deep/1.jpg", "Bo/link/2.png", "loose.jpg"} <= set(names) and names == sorted(names)
    )
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "2 .avif (not supported)" in error and "1 broken link" in error and "DS_Store" not in error


def test_align_and_pairs_take_the_same_kinds(people):
    assert str(aligned_path("a/x.jfif", FaceFormat())) == "a/x.jfif"
    assert str(aligned_path("a/x.webp", FaceFormat())) == "a/x.webp.jpg"
    assert find_image(people, "Ada/webp", "line 1").name == "webp.webp"
    assert find_image(people, "Ada/bare", "line 1").name == "bare"


def test_benchmarks_take_the_same_kinds(tmp_path):
    face = encoded(SQUARE, ".webp")
    write_files(tmp_path / "sc", {f"{person:03}_{view}.webp": face for person in (1, 2) for view in ("frontal", "cam1_1")})
    write_files(tmp_path / "sc", {"all.txt": b"", "002_cam1_2.avif": AVIF})
    left_out = LeftOut("all.txt")
    assert len(find_scface(tmp_path / "sc", left_out).images) == 4 and str(left_out).startswith("1 file was left out: 1 .avif")
    parts = {"Probe": "1_1", "Gallery_Match": "1_2", "Gallery_Distractor": "9"}
    write_files(tmp_path / "tiny", {f"{part}/{name}.tif": encoded(SQUARE, ".tif") for part, name in parts.items()})
    assert len(find_tinyface(tmp_path / "tiny", left_out).images) == 3


def test_a_foreign_set_of_webp_can_be_unpacked_but_not_loaded(tmp_path):
    (tmp_path / "set").mkdir()
    with RecordWriter(tmp_path / "set/train.rec") as writer:
        for key in range(2):
            writer.write(key, float(key), encoded(SQUARE, ".webp"))
    pack("unpack", tmp_path / "set", tmp_path / "unpacked")
    assert [path.suffix for path in find_images(tmp_path / "unpacked")] == [".webp", ".webp"]
    with pytest.raises(ValueError, match="neither JPEG nor PNG"):
        decode_face_into(encoded(SQUARE, ".webp"), np.empty((112, 112, 3), np.uint8))
