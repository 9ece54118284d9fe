"""Encoding of faces; alignment by landmarks and by a detector."""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from skimage.transform import SimilarityTransform

from recognition.data import FaceDataset
from recognition.data.pack.face_encoding import FaceFormat, encode, encode_file, fit_square
from recognition.data.pack.landmarks import FaceDetector, align_image, read_landmarks
from tests.pack_tools import LANDMARKS_IN_CELL, encoded, pack, picture, write_detector, write_files
from tests.shared_files import FACES, needs_faces
from utils.errors import UserError
from utils.images import ImageHeader, decode_image, read_header

YUNET = os.environ.get("QGFACE_YUNET", "")
ARCFACE = np.array([[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]])


def test_images_of_the_right_format_are_copied_and_others_encoded(tmp_path: Path) -> None:
    face = FaceFormat()
    sound, small, png = encoded(picture(8)), encoded(picture(8, 90, 70)), encoded(picture(8), ".png")
    write_files(tmp_path, {"a.jpg": sound, "b.jpg": small, "c.png": png, "d.jpg": png})
    assert encode_file(tmp_path / "a.jpg", face) == (sound, "")
    for name in ("b.jpg", "c.png", "d.jpg"):
        assert read_header(encode_file(tmp_path / name, face)[0]) == ImageHeader("jpeg", 112, 112)
    assert [encode_file(tmp_path / name, face)[1] for name in ("b.jpg", "c.png", "d.jpg")] == ["70x90", "", ""]
    lossless = FaceFormat(encoding="png")
    assert encode_file(tmp_path / "c.png", lossless)[0] == png
    assert np.array_equal(decode_image(encode_file(tmp_path / "a.jpg", lossless)[0], ""), decode_image(sound, ""))


def test_ways_to_make_an_image_square() -> None:
    image = np.zeros((60, 100, 3), np.uint8)
    image[:, 20:80] = 200
    assert (fit_square(image, 60, "crop") == 200).all()
    padded = fit_square(image, 100, "pad")
    assert padded.shape == (100, 100, 3) and not padded[:20].any() and np.array_equal(padded[20:80], image)
    assert fit_square(image, 50, "stretch").shape == (50, 50, 3)
    assert fit_square(picture(1), 112, "crop").shape == (112, 112, 3)


def test_alignment_is_scikit_images_transform() -> None:
    photo = picture(9, 300, 260)
    points = ARCFACE * 1.7 + [20, 35] + np.random.default_rng(1).normal(0, 3, (5, 2))
    for size in (112, 224):
        estimate = SimilarityTransform.from_estimate(points, ARCFACE * size / 112)
        expected = cv2.warpAffine(photo, estimate.params[:2], (size, size), borderValue=0.0)
        found = align_image(photo, points, size, "x")
        assert np.abs(found.astype(int) - expected).max() <= 1


def test_impossible_landmarks_are_refused() -> None:
    for points in (np.full((5, 2), 7.0), ARCFACE + 5000):
        with pytest.raises(UserError, match="photo"):
            align_image(picture(1), points, 112, "photo.jpg")


def _line(name: str, separator: str) -> str:
    return separator.join([name, *(f"{value:.3f}" for value in ARCFACE.ravel())])


def test_landmark_files_of_several_kinds(tmp_path: Path) -> None:
    file = tmp_path / "points.txt"
    for text, names in (
        (_line("a/b.jpg", " ") + "\n\n" + _line("c", " ") + " 0.99\n", ["a/b.jpg", "c"]),
        ("NAME_ID,P1X,P1Y\n" + _line('"n1/x y, z"', ",") + "\n", ["n1/x y, z"]),
        (_line("with blank.png", "\t"), ["with blank.png"]),
    ):
        file.write_text(text)
        table = read_landmarks(file)
        assert list(table) == names
        assert all(np.allclose(points, ARCFACE, atol=1e-3) for points in table.values())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.jpg 1 2 3", "line 1"),
        (_line("a", " ") + "\n" + _line("a", " "), "line 2.*second time"),
        ("", "lists no"),
        (_line("../a", " "), "inside"),
        (_line("/etc/a", " "), "inside"),
        (_line("a", " ")[:-6] + "nan", "not finite"),
        (_line("with blank", " "), "line 1"),
        (_line("a", " ") + "\nname x y", "line 2"),
    ],
)
def test_bad_landmark_files(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "points.txt"
    file.write_text(text)
    with pytest.raises(UserError, match=message):
        read_landmarks(file)


def _photo_with_square(left: int, top: int, side: int, colours: np.ndarray) -> np.ndarray:
    photo = np.zeros((480, 640, 3), np.uint8)
    photo[top : top + side, left : left + side] = colours
    return photo


def test_detector_finds_the_largest_face_in_photo_pixels(tmp_path: Path) -> None:
    write_detector(tmp_path / "squares.onnx")
    detector = FaceDetector(tmp_path / "squares.onnx")
    photo = _photo_with_square(96, 64, 32, 255) | _photo_with_square(400, 400, 8, 255)
    expected = np.array(LANDMARKS_IN_CELL) * 32 + [96, 64]
    assert np.allclose(detector.largest_face(photo, "x"), expected, atol=1e-3)
    large = cv2.resize(photo, (1920, 1440), interpolation=cv2.INTER_NEAREST)
    assert np.allclose(detector.largest_face(large, "x"), 3 * expected, atol=1e-2)
    with pytest.raises(UserError, match=r"dark\.jpg: no face was found"):
        detector.largest_face(np.zeros((100, 80, 3), np.uint8), "dark.jpg")


@pytest.mark.skipif(not YUNET, reason="QGFACE_YUNET does not name face_detection_yunet_2023mar.onnx")
@needs_faces
def test_the_real_yunet_finds_aligned_faces_where_they_are() -> None:
    """LFW crops, enlarged and rotated in the middle of a photo: their landmarks are at the places of ArcFace's template."""
    faces, detector = FaceDataset(FACES / "lfw_train"), FaceDetector(Path(YUNET))
    away = []
    for number in range(0, len(faces), len(faces) // 50):
        crop = decode_image(faces.read(number)[0], "", "BGR")
        to_photo = cv2.getRotationMatrix2D((56, 56), (number % 31) - 15, 1.0 + number % 7 / 4)
        to_photo[:, 2] += (264, 184)
        photo = cv2.warpAffine(crop, to_photo, (640, 480), borderValue=(110, 110, 110))
        expected = ARCFACE @ to_photo[:, :2].T + to_photo[:, 2]
        found = detector.largest_face(photo, str(number))
        away.append(np.linalg.norm(found - expected, axis=1).mean() / np.sqrt(np.linalg.det(to_photo[:, :2])))
    assert np.median(away) < 6 and np.mean(np.array(away) < 15) > 0.9  # pixels of 112


def test_align_with_a_detector_then_with_the_detected_landmarks(tmp_path: Path) -> None:
    photos, model = tmp_path / "photos", tmp_path / "squares.onnx"
    write_detector(model)
    sound = encoded(_photo_with_square(96, 64, 32, 255), ".png")
    dark = encoded(np.zeros((64, 64, 3), np.uint8), ".png")
    write_files(photos, {"ann/1.png": sound, "bob/2.png": sound, "bob/dark.png": dark})
    with pytest.raises(UserError, match=r"dark\.png: no face was found"):
        pack("align", photos, tmp_path / "stopped", "--detector", model)
    assert not (tmp_path / "stopped").exists()
    pack("align", photos, tmp_path / "once", "--detector", model, "--on-error", "skip", "--png")
    assert "dark.png" in (tmp_path / "once/skipped.csv").read_text()
    pack("align", photos, tmp_path / "again", "--landmarks", tmp_path / "once/landmarks.csv", "--on-error", "skip", "--png")
    points = np.array(LANDMARKS_IN_CELL) * 32 + [96, 64]
    expected = align_image(decode_image(sound, "", "BGR"), points, 112, "")
    for folder in ("once", "again"):
        for name in ("ann/1.png", "bob/2.png"):
            image = decode_image((tmp_path / folder / name).read_bytes(), name, "BGR")
            assert np.abs(image.astype(int) - expected).mean() < 0.5


@pytest.mark.parametrize("content", [None, b"no model", b"\x08\x08"])
def test_a_file_that_is_not_a_detector(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "m.onnx").write_bytes(content)
    with pytest.raises(UserError, match=r"m\.onnx"):
        FaceDetector(tmp_path / "m.onnx")


@needs_faces
def test_align_real_crops_by_their_protocol_files(tmp_path: Path) -> None:
    """With the template as landmarks, an aligned face only changes by being encoded again."""
    source, listed = FACES / "val/scface/aligned", FACES / "val/scface/all.txt"
    pack("align", source, tmp_path / "out", "--landmarks", listed, "--png")
    name = "001_cam1_2"
    before = decode_image((source / f"{name}.jpg").read_bytes(), name, "BGR")
    after = decode_image((tmp_path / f"out/{name}.jpg.png").read_bytes(), name, "BGR")
    assert np.abs(before.astype(int) - after).mean() < 1
    assert len(list((tmp_path / "out").glob("*.png"))) == 584
    assert encode(after, FaceFormat(encoding="png")) == (tmp_path / f"out/{name}.jpg.png").read_bytes()
