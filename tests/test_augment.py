"""Each augmentation compared with a simple reference: ranges, probabilities, borders, determinism."""

from __future__ import annotations

import io
import itertools

import cv2
import numpy as np
import pytest
from PIL import Image, ImageEnhance

from recognition.data import augment
from utils.errors import UserError
from utils.randomness import uniforms

INTERPOLATIONS = (cv2.INTER_NEAREST, cv2.INTER_LINEAR, cv2.INTER_AREA, cv2.INTER_CUBIC, cv2.INTER_LANCZOS4)


def _face(seed: int = 0) -> np.ndarray:
    """A smooth RGB picture with an uneven colour balance; no value is near 0 or 255, so that nothing saturates."""
    rng = np.random.default_rng(seed)
    noise = rng.uniform(0, 1, (14, 14, 3)).astype(np.float32) * (90, 60, 40) + (90, 70, 50)
    return cv2.resize(noise.astype(np.float32), (112, 112), interpolation=cv2.INTER_LINEAR).astype(np.uint8)


def _draws(count: int, seed: int = 1) -> np.ndarray:
    return uniforms(seed, 0, np.arange(count), augment.UNIFORMS)


def test_flip_mirrors_half_of_the_images():
    image = _face()
    assert np.array_equal(augment.flip(image, np.array([0.49])), image[:, ::-1])
    assert np.array_equal(augment.flip(image, np.array([0.5])), image)
    flipped = sum(not np.array_equal(augment.none(image, u), image) for u in _draws(4000))
    assert abs(flipped - 2000) < 4 * 1000**0.5


def _resized(image: np.ndarray, size: tuple[int, int], kind: int) -> np.ndarray:
    """Lanczos enlarges with 16 bits per channel; `test_lanczos_enlarges_within_one_level` compares that with 8."""
    if INTERPOLATIONS[kind] != cv2.INTER_LANCZOS4 or size[0] <= image.shape[1]:
        return cv2.resize(image, size, interpolation=INTERPOLATIONS[kind])
    wide = cv2.resize(image.astype(np.uint16), size, interpolation=cv2.INTER_LANCZOS4)
    return wide.clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("down", range(5))
@pytest.mark.parametrize("up", range(5))
def test_low_resolution_equals_two_resizes(down, up):
    image = _face()
    for u, side in ((0.0, 11), (0.5, 34), (0.999, 56)):  # 0.1, 0.3 and 0.5 of 112
        small = _resized(image, (side, side), down)
        row = np.array([u, (down + 0.5) / 5, (up + 0.5) / 5])
        assert np.array_equal(augment.low_resolution(image, row, 0.1, 0.5, None), _resized(small, (112, 112), up))
        expected = _resized(augment.jpeg(small, 75), (112, 112), up)
        assert np.array_equal(augment.low_resolution(image, row, 0.1, 0.5, 75), expected)


def test_lanczos_enlarges_within_one_level():
    rng = np.random.default_rng(0)
    for side in (11, 23, 34, 56, 111, 112):
        noise = rng.integers(0, 256, (side, side, 3)).astype(np.uint8)  # overshoots at both ends
        found = augment.resize(noise, (112, 112), cv2.INTER_LANCZOS4)
        assert found.dtype == np.uint8 and found.min() == 0 and found.max() == 255
        expected = cv2.resize(noise, (112, 112), interpolation=cv2.INTER_LANCZOS4)
        assert np.abs(found.astype(int) - expected).max() <= 1


def test_pixels_do_not_depend_on_ipp_where_it_is_switched_off():
    before = cv2.ipp.useIPP()
    for seed, side in enumerate((11, 20, 34, 56, 100)):
        image, noise = _face(seed), np.random.default_rng(seed).integers(0, 256, (112, 112, 3)).astype(np.uint8)
        for large in (image, noise):
            small = cv2.resize(large, (side, side))
            for function, arguments in (
                (augment._lanczos, (large, (side, side))),
                (augment._lanczos, (small, (112, 112))),
                (augment.jpeg, (small, 75)),
                (augment.rotation, (large, [side / 112], 45.0)),
            ):
                assert np.array_equal(function(*arguments), function.__wrapped__(*arguments)), (function, side)
    assert cv2.ipp.useIPP() == before


@pytest.mark.parametrize("quality", [30, 75, 95])
def test_jpeg_equals_pillows(quality):
    image = _face(3)
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality, subsampling="4:2:0")
    expected = np.asarray(Image.open(buffer)).astype(int)
    difference = np.abs(augment.jpeg(image, quality) - expected)
    assert difference.mean() < 0.5  # exchanged colours would differ by several levels
    swapped = np.abs(augment.jpeg(image[..., ::-1].copy(), quality)[..., ::-1] - expected)
    assert difference.mean() < swapped.mean()


@pytest.mark.parametrize(("low", "high"), [(0.8, 1.0), (0.2, 1.0)])
def test_crop_boxes_are_inside_and_have_the_requested_areas(low, high):
    boxes = np.array([augment.crop_box(u, 112, 112, low, high) for u in _draws(5000)])
    top, left, height, width = boxes.T
    assert (top >= 0).all() and (left >= 0).all() and (top + height <= 112).all() and (left + width <= 112).all()
    area = height * width / 112**2
    assert area.min() > low - 0.012 and area.max() <= high  # a pixel of rounding
    assert abs(area.mean() - (low + high) / 2) < 0.02 * (high - low) + 0.002
    assert (width / height).min() > 0.73 and (width / height).max() < 1.37
    free_rows, free_columns = 112 - height, 112 - width
    for offset, free in ((top, free_rows), (left, free_columns)):
        room = free > 8
        assert abs((offset[room] / free[room]).mean() - 0.5) < 0.03
        assert (offset[room] == 0).any() and (offset[room] == free[room]).any()


def test_resized_crop_equals_pillows():
    image, u = _face(1), np.array([0.3, 0.4, 0.9, 0.2])
    top, left, height, width = augment.crop_box(u, 112, 112, 0.8, 1.0)
    box = (left, top, left + width, top + height)
    expected = np.asarray(Image.fromarray(image).resize((112, 112), Image.Resampling.BILINEAR, box=box)).astype(int)
    assert np.abs(augment.resized_crop(image, u, 0.8, 1.0) - expected).max() <= 2


def test_crop_in_place_keeps_the_crop_and_blackens_the_rest():
    image = _face()
    for u in _draws(50):
        top, left, height, width = augment.crop_box(u, 112, 112, 0.2, 1.0)
        result = augment.crop_in_place(image, u, 0.2, 1.0)
        inside = np.zeros((112, 112), bool)
        inside[top : top + height, left : left + width] = True
        assert np.array_equal(result[inside], image[inside]) and not result[~inside].any()


JITTERS = [(0, 0.5, 0.5), (1, 0.5, 0.5), (0.5, 0, 0.5), (0.5, 1, 0.5), (0.5, 0.5, 0), (0.5, 0.5, 1), (0.2, 0.9, 0.1)]


@pytest.mark.parametrize("u", JITTERS)
def test_colour_jitter_equals_pillows_enhancers_in_turn(u):
    image = _face(2)
    expected = Image.fromarray(image)
    for enhancer, draw in zip((ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color), u, strict=True):
        expected = enhancer(expected).enhance(0.8 + 0.4 * draw)
    difference = np.abs(augment.colour_jitter(image, np.array(u), 0.2) - np.asarray(expected).astype(int))
    assert difference.max() <= 3  # Pillow rounds three times


def test_rotation_equals_pillows_without_a_black_border():
    image = _face(4)
    for u, degrees in ((0.0, -45), (0.5, 0), (0.8, 27), (1.0, 45)):
        turned = augment.rotation(image, np.array([u]), 45.0)
        expected = np.asarray(Image.fromarray(image).rotate(degrees, Image.Resampling.BILINEAR)).astype(int)
        centre = np.hypot(*(np.indices((112, 112)) - 55.5)) < 50
        assert np.abs(turned - expected)[centre].max() <= 6 and np.abs(turned - expected)[centre].mean() < 1
        assert turned.min() >= image.min()  # pixels from outside have the border's colour
    flat = np.full((112, 112, 3), 201, np.uint8)
    assert (augment.rotation(flat, np.array([0.93]), 45.0) == 201).all()


# -- recipes


def test_qgface_applies_each_operation_with_its_probability():
    image, base = _face(), np.full(augment.UNIFORMS, 0.9)
    low = augment.low_resolution(image, base[1:4], 0.1, 0.5, 75)
    for place, operation in (
        (4, lambda part: augment.resized_crop(part, base[5:9], 0.8, 1.0)),
        (9, lambda part: augment.colour_jitter(part, base[10:13], 0.2)),
        (13, lambda part: augment.rotation(part, base[14:15], 45.0)),
    ):
        u = base.copy()
        u[place] = augment.QGFACE_PROBABILITY
        assert np.array_equal(augment.qgface(image, u), low)
        u[place] = np.nextafter(augment.QGFACE_PROBABILITY, 0)
        assert np.array_equal(augment.qgface(image, u), operation(low))
    everything = base.copy()
    everything[[0, 4, 9, 13]] = 0
    expected = augment.resized_crop(low, base[5:9], 0.8, 1.0)
    expected = augment.rotation(augment.colour_jitter(expected, base[10:13], 0.2), base[14:15], 45.0)
    assert np.array_equal(augment.qgface(image, everything), expected[:, ::-1])
    assert augment.QGFACE_PROBABILITY == augment.ADAFACE_PROBABILITY == 0.2


def test_chain_applies_its_operations_in_the_drawn_order():
    image, u = _face(), np.full(augment.UNIFORMS, 0.55)
    u[[5, 8, 11]] = 0.1
    sizes, results = [], []
    for place, order in enumerate(itertools.permutations(range(4))):
        u[4] = (place + 0.5) / 24
        expected = image
        for step in order:
            expected = (
                lambda i: augment.resize(i, (67, 67), INTERPOLATIONS[2]),  # 112 x (0.1 + 0.55 x 0.9)
                lambda i: cv2.GaussianBlur(i, (0, 0), (0.3 + 0.55 * 2.7) * i.shape[1] / 112),
                lambda i: augment.noise(i, u[9:11], 1.0, 12.0),
                lambda i: augment.jpeg(i, round(30 + 0.55 * 65)),
            )[step](expected)
        sizes.append(expected.shape[0])
        results.append(augment.chain(image, u))
        assert np.array_equal(results[-1], cv2.resize(expected, (112, 112), interpolation=INTERPOLATIONS[2]))
    assert set(sizes) == {67} and len({result.tobytes() for result in results}) > 12


def test_operations_of_the_chain():
    image = _face(3)
    calm = dict.fromkeys(("blur", "noise", "jpeg", "align", "exposure", "colour"), 0)
    u = _draws(1)[0]
    unchanged = augment.recipe("chain", {f"{name}_probability": 0 for name in calm} | {"scale": [1, 1]})
    assert np.array_equal(unchanged(image, u), augment.flip(image, u))
    grey = np.full((112, 112, 3), 128, np.uint8)
    noisy = augment.noise(grey, [0.5, 0.3], 4.0, 8.0)
    assert abs(noisy.astype(int).std() - 6) < 0.2 and abs(noisy.mean() - 128) < 0.2
    assert (
        np.array_equal(noisy, augment.noise(grey, [0.5, 0.3], 4.0, 8.0))
        and (noisy != augment.noise(grey, [0.5, 0.4], 4, 8)).any()
    )
    shifted = augment.misalignment(image, [1.0, 0.5, 0.5, 0.5], 1 / 16, 10.0)
    assert np.array_equal(shifted[:, 7:], image[:, :-7])
    for draw, power in ((0.0, 0.5), (0.5, 1.0), (1.0, 2.0)):
        expected = np.rint(255 * (image / 255) ** power)
        assert np.array_equal(augment.exposure(image, [draw], 1.0), expected)


def test_options_set_ranges_and_probabilities():
    image, u = _face(), _draws(40)
    wider = augment.recipe("qgface", {"scale": [0.05, 0.5], "crop_probability": 0, "rotation_probability": 1, "jpeg_quality": 40})
    for row in u:
        expected = augment.low_resolution(image, row[1:4], 0.05, 0.5, 40)
        if row[9] < augment.QGFACE_PROBABILITY:
            expected = augment.colour_jitter(expected, row[10:13], 0.2)
        assert np.array_equal(wider(image, row), augment.flip(augment.rotation(expected, row[14:15], 45.0), row))
    calm = dict.fromkeys(("crop_probability", "scale_probability", "colour_probability"), 0)
    assert all(np.array_equal(augment.recipe("adaface", calm)(image, row), augment.flip(image, row)) for row in u)
    assert augment.recipe("qgface", {}) is augment.qgface


@pytest.mark.parametrize(
    ("name", "option", "value", "message"),
    [
        ("qgface", "scales", [0.1, 0.5], "unknown to augmentation='qgface'; did you mean 'scale'?"),
        ("none", "scale", [0.1, 0.5], "unknown to augmentation='none'; known options: none"),
        ("qgface", "scale", [0.5, 0.1], "two numbers in increasing order, both from 0.02 to 1"),
        ("qgface", "scale", 0.3, "two numbers in increasing order"),
        ("adaface", "crop_probability", 1.5, "must be a number from 0 to 1"),
        ("qgface", "jpeg_quality", 75.5, "must be a number from 1 to 100"),
        ("qgface", "rotation_degrees", "much", "must be a number from 0 to 180"),
    ],
)
def test_wrong_options_are_named(name, option, value, message):
    with pytest.raises(UserError) as raised:
        augment.recipe(name, {option: value})
    assert message in str(raised.value) and f"augmentation_options: {option}={value!r}" in str(raised.value)


def test_adaface_does_not_change_half_of_the_images():
    image = _face()
    same = 0
    for u in _draws(3000):
        result = augment.adaface(image, u)
        same += np.array_equal(result, image[:, ::-1] if u[0] < 0.5 else image)
    assert abs(same / 3000 - 0.8**3) < 0.04


def test_the_order_of_adafaces_operations():
    image, u = _face(), np.full(augment.UNIFORMS, 0.6)
    u[[1, 6, 10]] = 0.1
    expected = augment.crop_in_place(image, u[2:6], 0.2, 1.0)
    expected = augment.low_resolution(expected, u[7:10], 0.2, 1.0, None)
    assert np.array_equal(augment.adaface(image, u), augment.colour_jitter(expected, u[11:14], 0.5))


@pytest.mark.parametrize("name", sorted(augment.AUGMENTATIONS))
def test_recipes_are_pure_functions(name):
    recipe, image = augment.AUGMENTATIONS[name], _face()
    image.flags.writeable = False
    for u in _draws(60, seed=9):
        u.flags.writeable = False
        first = recipe(image, u)
        assert first.shape == (112, 112, 3) and first.dtype == np.uint8
        assert np.array_equal(recipe(image.copy(), u), first)
        out = np.full((2, 112, 112, 3), 7, np.uint8)
        recipe(image, u, out[1])
        assert np.array_equal(out[1], first) and (out[0] == 7).all()


GATES = {
    "qgface": {4: (5, 9), 9: (10, 13), 13: (14, 15)},
    "adaface": {1: (2, 6), 6: (7, 10), 10: (11, 14)},
    "chain": {5: (6, 7), 8: (9, 11), 11: (12, 13), 13: (14, 18), 18: (19, 20), 20: (21, 24)},
}


@pytest.mark.parametrize(("name", "gates"), GATES.items())
def test_a_skipped_operation_does_not_affect_the_others_random_numbers(name, gates):
    recipe, image = augment.AUGMENTATIONS[name], _face()
    for u in _draws(20, seed=4):
        for gate, (start, stop) in gates.items():
            closed = u.copy()
            closed[gate] = 0.9
            other = closed.copy()
            other[start:stop] = 1 - other[start:stop]
            assert np.array_equal(recipe(image, closed), recipe(image, other))
