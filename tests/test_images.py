"""Image headers, and decoding: cv2.imdecode's pixels for every kind of JPEG and PNG, errors for anything else, no bombs."""

from __future__ import annotations

import io
import resource
import subprocess
import sys
from collections.abc import Iterator

import cv2
import numpy as np
import pytest
from PIL import Image

from backbones.layers import IMAGE_SIZE
from recognition.data import FaceDataset
from recognition.encoders.card import EncoderCard
from tests.pack_tools import encoded, jpeg_claiming, picture, png_claiming
from tests.shared_files import FACES, ROOT, needs_faces
from utils.errors import UserError
from utils.images import (
    FACE_SIZE,
    RAW_BYTES,
    ImageHeader,
    decode_face_into,
    decode_image,
    has_end,
    is_raw_face,
    read_header,
)

QUALITIES = (5, 30, 50, 75, 90, 95, 100)


def _reference(payload: bytes, flag: int = cv2.IMREAD_COLOR_RGB) -> np.ndarray | None:
    try:
        return cv2.imdecode(np.frombuffer(payload, np.uint8), flag)
    except cv2.error:
        return None


def _decoded(payload: bytes, order: str = "RGB") -> np.ndarray:
    out = np.full((2, 112, 112, 3), 77, np.uint8)  # nothing may be written to the second half
    decode_face_into(payload, out[0], order)
    assert (out[1] == 77).all()
    return out[0]


def _picture(seed: int) -> np.ndarray:
    """RGB uint8 [112, 112, 3] with smooth parts, edges and noise."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (9, 9, 3)).astype(np.uint8)
    image = cv2.resize(small, (112, 112), interpolation=cv2.INTER_CUBIC)
    image[30:80, 40:90] = rng.integers(0, 256, (50, 50, 3))
    return image


def _jpegs(image: np.ndarray) -> Iterator[bytes]:
    """All kinds of JPEG that cameras, Pillow and OpenCV write."""
    for quality in QUALITIES:
        for sampling in ("4:4:4", "4:2:2", "4:2:0"):
            for progressive in (False, True):
                yield _pillow(image, "RGB", quality=quality, subsampling=sampling, progressive=progressive)
        yield _pillow(image, "L", quality=quality)
        for sampling in (cv2.IMWRITE_JPEG_SAMPLING_FACTOR_411, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_440):
            options = [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, sampling]
            yield cv2.imencode(".jpg", image, options)[1].tobytes()
    yield cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_RST_INTERVAL, 3])[1].tobytes()
    yield cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_OPTIMIZE, 1])[1].tobytes()
    yield _pillow(image, "CMYK")
    yield _pillow(image, "RGB", keep_rgb=True)
    yield _pillow(image, "RGB") + b"what some cameras append"


def _pillow(image: np.ndarray, mode: str, **options) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).convert(mode).save(buffer, "JPEG", **options)
    return buffer.getvalue()


@pytest.mark.parametrize("order", ["RGB", "BGR"])
def test_all_kinds_of_jpeg_have_opencvs_pixels(order):
    flag = cv2.IMREAD_COLOR_RGB if order == "RGB" else cv2.IMREAD_COLOR
    for seed in range(3):
        for number, payload in enumerate(_jpegs(_picture(seed))):
            assert np.array_equal(_decoded(payload, order), _reference(payload, flag)), (seed, number)


@needs_faces
def test_real_faces_have_opencvs_pixels():
    dataset = FaceDataset(FACES / "lfw_train")
    rng = np.random.default_rng(0)
    for number in rng.choice(len(dataset), 500, replace=False).tolist():
        payload, _ = dataset.read(number)
        face = _reference(payload)
        assert np.array_equal(_decoded(payload), face)
        again = _pillow(face, rng.choice(["RGB", "L"]), quality=int(rng.integers(50, 101)), subsampling=int(rng.integers(3)))
        assert np.array_equal(_decoded(again), _reference(again))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_exif_orientation_is_applied_as_opencv_does(orientation):
    exif = Image.Exif()
    exif[0x112] = orientation
    payload, upright = _pillow(_picture(1), "RGB", exif=exif), _pillow(_picture(1), "RGB")
    assert np.array_equal(_decoded(payload), _reference(payload))
    assert np.array_equal(_decoded(payload), _decoded(upright)) == (orientation == 1)


def test_pngs():
    image = _picture(2)
    for pixels in (image, image[..., 0], np.dstack([image, image[..., :1]]), image.astype(np.uint16) * 257):
        payload = cv2.imencode(".png", pixels)[1].tobytes()
        assert np.array_equal(_decoded(payload), _reference(payload))


def test_a_flipped_bit_is_refused_or_decoded_as_by_opencv():
    rng = np.random.default_rng(3)
    whole = cv2.imencode(".jpg", _picture(3), [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tobytes()
    refused = 0
    for _ in range(1500):
        payload = bytearray(whole)
        payload[rng.integers(len(payload))] ^= 1 << rng.integers(8)
        try:
            found = _decoded(bytes(payload))
        except ValueError:
            refused += 1
            continue
        assert np.array_equal(found, _reference(bytes(payload)))
    assert 10 < refused < 500


def _raw(**changes: int) -> bytes:
    """A raw face, with some bytes of its header changed: b18 is byte 18."""
    payload = bytearray(encoded(_picture(4), ".bmp"))
    for place, value in changes.items():
        payload[int(place[1:])] = value
    return bytes(payload)


@pytest.mark.parametrize("order", ["RGB", "BGR"])
def test_raw_faces_and_mirrored_ones(order):
    image = _picture(4)
    raw, jpeg = _raw(), encoded(image)
    assert is_raw_face(raw) and not is_raw_face(jpeg) and len(raw) == RAW_BYTES == 54 + 112 * 112 * 3
    assert np.array_equal(_decoded(raw, "BGR"), image)  # as cv2.imencode got it
    for payload in (raw, jpeg, encoded(image, ".png")):
        flag = cv2.IMREAD_COLOR_RGB if order == "RGB" else cv2.IMREAD_COLOR
        assert np.array_equal(_decoded(payload, order), _reference(payload, flag))
        out = np.empty((112, 112, 3), np.uint8)
        decode_face_into(payload, out, order, mirror=True)
        assert np.array_equal(out, _decoded(payload, order)[:, ::-1])


REFUSED = [
    (_raw()[:-1], "37685 bytes.*nor raw.*37686 bytes"),
    (_raw() + b"0", "37687 bytes.*nor raw"),
    (_raw(b10=58), "nor raw"),  # where the pixels begin
    (_raw(b18=100), "nor raw"),  # width
    (_raw(b28=32), "nor raw"),  # bits per pixel
    (_raw(b30=1), "nor raw"),  # compression
    (b"", "it is empty"),
    (b"hello" + bytes(40), "it is not a JPEG, PNG"),
    (b"GIF89a" + bytes(40), "its GIF header has no image at byte 13"),
    (cv2.imencode(".bmp", np.zeros((112, 112), np.uint8))[1].tobytes(), "neither JPEG nor PNG"),
    (cv2.imencode(".jpg", np.zeros((111, 112, 3), np.uint8))[1].tobytes(), "is 112x111, expected 112x112; align"),
    (cv2.imencode(".png", np.zeros((50, 50, 3), np.uint8))[1].tobytes(), "is 50x50, expected 112x112; align"),
    (jpeg_claiming(224, 56), "is 224x56, expected 112x112"),  # the same number of pixels
    (jpeg_claiming(60_000, 60_000), "is 60000x60000, expected 112x112"),
    (cv2.imencode(".png", _picture(1))[1].tobytes()[:-12], "it is truncated"),
    (_pillow(_picture(1), "RGB")[:-2], "it is truncated"),
    (_pillow(_picture(1), "RGB")[:900], "it is truncated"),
    (_pillow(_picture(1), "RGB", progressive=True)[:-2], "it is truncated"),
    (b"\xff\xd8\xff\xd9", "cannot be decoded"),
]


@pytest.mark.parametrize(("payload", "problem"), REFUSED)
def test_errors_say_what_is_wrong(payload, problem):
    with pytest.raises(ValueError, match=problem):
        _decoded(payload)


def test_faces_have_the_size_that_backbones_take():
    assert FACE_SIZE == IMAGE_SIZE == EncoderCard("", 512, "RGB").input_size


# -- headers


def test_headers_agree_with_the_decoder() -> None:
    for suffix, kind in ((".jpg", "jpeg"), (".png", "png"), (".bmp", "bmp"), (".ppm", "pnm")):
        for height, width in ((112, 92), (1, 300), (250, 7)):
            assert read_header(encoded(picture(1, height, width), suffix)) == ImageHeader(kind, width, height)
    grey = cv2.cvtColor(picture(2, 30, 40), cv2.COLOR_BGR2GRAY)
    assert read_header(encoded(grey, ".pgm")) == ImageHeader("pnm", 40, 30)
    assert read_header(b"P5 # a comment\n# another\n 92\t112 255\n" + bytes(92 * 112)) == ImageHeader("pnm", 92, 112)
    progressive = cv2.imencode(".jpg", picture(3, 20, 50), [cv2.IMWRITE_JPEG_PROGRESSIVE, 1])[1].tobytes()
    assert read_header(progressive) == ImageHeader("jpeg", 50, 20)


def test_a_jpeg_with_a_thumbnail_in_a_comment() -> None:
    """The size is that of the image, not of the thumbnail."""
    plain = encoded(picture(4, 60, 80))
    thumbnail = encoded(picture(5, 8, 8))
    comment = b"\xff\xfe" + (2 + len(thumbnail)).to_bytes(2, "big") + thumbnail
    assert read_header(plain[:2] + comment + plain[2:]) == ImageHeader("jpeg", 80, 60)


NOT_IMAGES = [
    b"",
    b"\xff\xd8\xff",
    b"hello",
    b"P5\n12",
    b"P5\n0 10\n255\n",
    b"BM" + bytes(10),
    b"\x89PNG\r\n\x1a\n" + bytes(30),
    b"\xff\xd8\xff\xe0\0\1",
    b"\xff\xd8\xff\xd9",
]


@pytest.mark.parametrize("data", NOT_IMAGES)
def test_data_that_is_not_an_image_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError):
        read_header(data)
    with pytest.raises(UserError, match="somewhere"):
        decode_image(data, "somewhere")


def test_random_damage_raises_only_value_errors() -> None:
    draw = np.random.default_rng(0)
    for suffix in (".jpg", ".png", ".bmp", ".ppm", ".webp", ".gif", ".tif"):
        whole = encoded(picture(6, 24, 20), suffix)
        for _ in range(400):
            data = bytearray(whole[: draw.integers(1, len(whole) + 1)])
            for place in draw.integers(0, min(len(data), 64), 3):
                data[place] = draw.integers(0, 256)
            try:
                header = read_header(bytes(data))
            except ValueError:
                continue
            assert header.width >= 1 and header.height >= 1


def test_decompression_bombs_are_not_decoded() -> None:
    """In a process with a limit of 2 GB; 30000x30000 pixels would need 2.7 GB."""
    bomb = png_claiming(30_000, 30_000)
    with pytest.raises(ValueError, match="900,000,000 pixels"):
        decode_image(bomb, "bomb")
    script = (
        "import sys; from utils.images import decode_image\n"
        "try: decode_image(sys.stdin.buffer.read(), 'bomb')\n"
        "except ValueError as error: print(error)"
    )
    limit = 2 << 30
    done = subprocess.run(
        [sys.executable, "-c", script],
        input=bomb,
        capture_output=True,
        cwd=ROOT,
        check=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
    )
    assert b"its header announces 30000x30000" in done.stdout


def test_truncated_images_are_refused() -> None:
    for suffix in (".jpg", ".png"):
        data = encoded(picture(7), suffix)
        for cut in (len(data) - 2, len(data) // 2):
            with pytest.raises(UserError, match="is truncated"):
                decode_image(data[:cut], "x")


def test_headers_and_ends_of_images() -> None:
    rng = np.random.default_rng(0)
    for height, width in ((112, 112), (1, 7), (300, 20)):
        image = rng.integers(0, 256, (height, width, 3)).astype(np.uint8)
        for kind, options in ((".png", []), (".jpg", []), (".jpg", [cv2.IMWRITE_JPEG_PROGRESSIVE, 1])):
            for pixels in (image, image[..., 0]):
                data = cv2.imencode(kind, pixels, options)[1].tobytes()
                header = read_header(data)
                assert (f".{header.kind[:3]}", header.height, header.width) == (kind.replace("jpg", "jpe"), height, width)
                assert has_end(data, header) and not has_end(data[: len(data) // 2], header)
                for length in (0, 1, 2, 8, 20):
                    with pytest.raises(ValueError, match=r"empty|truncated|damaged|has no IHDR|is not a JPEG"):
                        read_header(data[:length])
    padded = cv2.imencode(".jpg", np.zeros((5, 6), np.uint8))[1].tobytes()
    header = read_header(padded[:2] + b"\xff\xff\xff" + padded[2:])  # fill bytes before a marker
    assert (header.height, header.width) == (5, 6)
