"""Decoding of faces: the pixels of cv2.imdecode for every kind of JPEG and PNG, and errors for anything else."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator

import cv2
import numpy as np
import pytest
from PIL import Image

from recognition.data import FaceDataset
from tests.shared_files import FACES, needs_faces
from utils.images import decode_face_into

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
    for picture in (image, image[..., 0], np.dstack([image, image[..., :1]]), image.astype(np.uint16) * 257):
        payload = cv2.imencode(".png", picture)[1].tobytes()
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


def _announcing(width: int, height: int) -> bytes:
    encoded = bytearray(_pillow(_picture(0), "RGB"))
    at = encoded.index(b"\xff\xc0")
    encoded[at + 5 : at + 9] = struct.pack(">HH", height, width)
    return bytes(encoded)


REFUSED = [
    (b"", "it is empty"),
    (b"GIF89a" + bytes(40), "it is not a JPEG, PNG"),
    (cv2.imencode(".bmp", np.zeros((112, 112, 3), np.uint8))[1].tobytes(), "neither JPEG nor PNG"),
    (cv2.imencode(".jpg", np.zeros((111, 112, 3), np.uint8))[1].tobytes(), "is 112x111, expected 112x112; align"),
    (cv2.imencode(".png", np.zeros((50, 50, 3), np.uint8))[1].tobytes(), "is 50x50, expected 112x112; align"),
    (_announcing(224, 56), "is 224x56, expected 112x112"),  # as many bytes of pixels
    (_announcing(60_000, 60_000), "is 60000x60000, expected 112x112"),
    (cv2.imencode(".png", _picture(1))[1].tobytes()[:-12], "it is truncated"),
    (_pillow(_picture(1), "RGB")[:-2], "it is truncated"),
    (_pillow(_picture(1), "RGB")[:900], "it is truncated"),
    (_pillow(_picture(1), "RGB", progressive=True)[:-2], "it is truncated"),
    (b"\xff\xd8\xff\xd9", "cannot be decoded"),
]


@pytest.mark.parametrize(("payload", "problem"), REFUSED, ids=[problem for _, problem in REFUSED])
def test_errors_say_what_is_wrong(payload, problem):
    with pytest.raises(ValueError, match=problem):
        _decoded(payload)
