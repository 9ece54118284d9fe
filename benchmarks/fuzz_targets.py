"""Targets for benchmarks/fuzz.py and tests/test_security.py: for each kind of file, small valid examples and its readers."""

from __future__ import annotations

import contextlib
import io
import json
import pickle
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch
from safetensors.torch import save_file

import backbones
from eval.feature_cache import FeatureCache
from eval.protocols.ijb_files import read_feature_file
from eval.verification import load_bin
from recognition.checkpoints import manifest, store
from recognition.data import RecordReader, RecordWriter
from recognition.data.batch import BatchMaker, BatchSpec
from recognition.data.dataset import FaceDataset
from recognition.data.pack.commands.pairs import read_pairs
from recognition.data.pack.landmarks import read_landmarks
from recognition.data.pack.listing import ImageList, read_classes
from utils import config
from utils.errors import UserError
from utils.files import numbered_lines
from utils.images import FACE_SIZE, SUFFIXES_OF, decode_face, decode_image


def _face(number: int, kind: str = "jpeg", side: int = FACE_SIZE) -> bytes:
    rows, columns = np.mgrid[:side, :side]
    image = np.stack([rows * 2, columns * 2, (rows + columns + number * 20) % 255], -1).astype(np.uint8)
    return cv2.imencode(SUFFIXES_OF[kind][0], image)[1].tobytes()


class Target:
    """`seeds`: sound files. `read`: everything that the software does with such a file; only UserError is a refusal."""

    seeds: list[bytes]

    def __init__(self, folder: Path):
        self.folder = folder

    def read(self, content: bytes) -> None:
        raise NotImplementedError

    def _file(self, name: str, content: bytes) -> Path:
        path = self.folder / name
        path.write_bytes(content)
        return path


class Records(Target):
    """A .rec file, with a sound index and without an index."""

    def __init__(self, folder: Path):
        super().__init__(folder)
        images = [_face(n, "png" if n == 3 else "jpeg") for n in range(6)]
        with RecordWriter(folder / "train.rec") as writer:
            writer.write(0, np.array([7, 9], np.float32), b"")
            for number, image in enumerate(images):
                writer.write(number + 1, float(number // 3), image)
            for identity in range(2):
                writer.write(7 + identity, np.array([1 + 3 * identity, 4 + 3 * identity], np.float32), b"")
        with RecordWriter(folder / "plain.rec") as writer:
            for number in range(3):
                writer.write(number, float(number), bytes([10, 35, 215, 206]) * 3)
        self.index = (folder / "train.idx").read_bytes()
        self.seeds = [(folder / "train.rec").read_bytes(), (folder / "plain.rec").read_bytes()]

    def read(self, content: bytes) -> None:
        self._read_set(content, self.index)
        (self.folder / "train.idx").unlink(missing_ok=True)
        self._read_set(content, None)

    def _read_set(self, records: bytes, index: bytes | None) -> None:
        path = self._file("train.rec", records)
        if index is not None:
            self._file("train.idx", index)
        with RecordReader(path) as reader:
            for key in reader.keys[:20].tolist():
                try:
                    reader.read(key)
                except UserError:
                    continue
        dataset = FaceDataset(path)
        classes = dataset.num_classes
        dataset.check_labels(classes)
        settings = config.from_base(batch_size=min(2, len(dataset)), num_classes=classes, shuffle="none", on_error="skip")
        spec = BatchSpec.of(settings)
        maker = BatchMaker(dataset, spec)
        for number in range(min(maker.steps, 4)):
            maker.fill(0, number, np.empty(spec.image_shape, np.uint8))


class Indices(Records):
    """An .idx file with sound records."""

    def __init__(self, folder: Path):
        super().__init__(folder)
        self.records, self.seeds = self.seeds[0], [self.index]

    def read(self, content: bytes) -> None:
        self._read_set(self.records, content)


class Bins(Target):
    """A verification set in all pickle protocols, with images as bytes and as arrays."""

    def __init__(self, folder: Path):
        super().__init__(folder)
        images = [_face(n) for n in range(4)]
        arrays = [np.frombuffer(image, np.uint8) for image in images]
        self.seeds = [pickle.dumps((images, [True, False]), protocol) for protocol in range(6)]
        self.seeds += [pickle.dumps((arrays, np.array([True, False])), protocol) for protocol in (2, 4)]

    def read(self, content: bytes) -> None:
        images, _ = load_bin(self._file("set.bin", content))
        for number, image in enumerate(images[:8]):
            decode_face(image, f"image {number}")


class Images(Target):
    """A single encoded image of any kind, as a face and as a photo."""

    def __init__(self, folder: Path):
        super().__init__(folder)
        kinds = ("jpeg", "jpeg", "png", "webp", "webp", "gif", "gif", "tiff", "tiff", "bmp")
        self.seeds = [_face(n, kind, side=FACE_SIZE if n % 2 else 24) for n, kind in enumerate(kinds)]
        grey = np.arange(24 * 20, dtype=np.uint8).reshape(24, 20)
        for options in ([], [cv2.IMWRITE_TIFF_COMPRESSION, 1], [cv2.IMWRITE_TIFF_COMPRESSION, 8]):
            self.seeds.append(cv2.imencode(".tif", grey, options)[1].tobytes())
        self.seeds.append(cv2.imencode(".webp", np.dstack([grey] * 4), [cv2.IMWRITE_WEBP_QUALITY, 101])[1].tobytes())

    def read(self, content: bytes) -> None:
        for decode in (decode_face, decode_image):
            with contextlib.suppress(UserError):
                decode(content, "image")


class Configs(Target):
    """A saved configuration."""

    def __init__(self, folder: Path):
        super().__init__(folder)
        config.from_base(rec="/data/set", output="runs/a", val_targets=("lfw",)).save(folder / "config.json")
        lines = ("lr=0.1\nmilestones=[3, 6]\nval_targets=['lfw']", "queue=none\nquality_threshold=None\nmargin_list=(1, 0.5, 0)")
        self.seeds = [(folder / "config.json").read_bytes(), *(line.encode() for line in lines)]

    def read(self, content: bytes) -> None:
        config.load_json(self._file("config.json", content))


class Arguments(Configs):
    """Lines of key=value, as on the command line."""

    def read(self, content: bytes) -> None:
        text = content.decode("utf-8", "replace").replace("\0", "")
        config.load(str(Path(__file__).resolve().parent.parent / "configs/base.py"), text.splitlines())


class Features(Target):
    """A features.npz, read as by the benchmarks and as by the cache."""

    def __init__(self, folder: Path):
        super().__init__(folder)
        rows = np.arange(48, dtype=np.float32).reshape(6, 8)
        arrays = {"features": rows, "features_flip": rows + 1, "scores": np.linspace(0, 1, 6, dtype=np.float32)}
        np.savez(folder / "a.npz", **arrays)
        np.savez_compressed(folder / "b.npz", **arrays)
        np.savez(folder / "c.npz", features=np.array([{"an": "object"}, None], dtype=object))
        self.seeds = [(folder / f"{name}.npz").read_bytes() for name in "abc"]

    def read(self, content: bytes) -> None:
        path = self._file("features.npz", content)
        for attempt in (self._as_features, FeatureCache._load):
            try:
                with contextlib.redirect_stdout(io.StringIO()):
                    attempt(path)
            except UserError:
                continue

    @staticmethod
    def _as_features(path: Path) -> None:
        for rows in read_feature_file(path).values():
            if hasattr(rows, "shape") and not isinstance(rows, np.ndarray):
                rows.read(0, min(4, rows.shape[0]))


class Weights(Target):
    """Released weights: torch's zip and older formats, safetensors."""

    def __init__(self, folder: Path):
        super().__init__(folder)
        self.module = backbones.build("tiny", embedding_size=32)
        state = {name: value[:1] for name, value in list(self.module.state_dict().items())[:3] if value.dim()}
        torch.save(state, folder / "a.pt")
        torch.save({"state_dict": state}, folder / "b.pt", _use_new_zipfile_serialization=False)
        save_file(state, folder / "c.safetensors")
        self.seeds = [(folder / name).read_bytes() for name in ("a.pt", "b.pt", "c.safetensors")]

    def read(self, content: bytes) -> None:
        for name in ("weights.pt", "weights.safetensors"):
            try:
                backbones.load_weights(self.module, self._file(name, content))
            except (UserError, ValueError):  # the encoder's loader turns ValueError into UserError
                continue


class Checkpoints(Target):
    """The files of a checkpoint, also read without the manifest's check."""

    def __init__(self, folder: Path):
        super().__init__(folder)
        self.step = folder / "run/checkpoints/step-00000001"
        self.step.mkdir(parents=True)
        save_file({"encoder.a": torch.ones(2, 3), "b": torch.zeros(4)}, self.step / "shard-00001.safetensors")
        document = {"format": store.FORMAT, "step": 1, "sharded": [], "skipped_in_a_row": 0, "global_batch": 2}
        (self.step / "state.json").write_text(json.dumps(document))
        config.from_base(rec="x").save(self.step / "config.json")
        manifest.write(self.step, manifest.entries_of(sorted(self.step.iterdir())))
        self.names = ["manifest.json", "state.json", "shard-00001.safetensors"]
        self.sound = {name: (self.step / name).read_bytes() for name in self.names}
        self.seeds = list(self.sound.values())

    def read(self, content: bytes) -> None:
        for name in self.names:
            (self.step / name).write_bytes(content)
            readers: tuple[Callable[[], object], ...] = (
                lambda: store.newest(self.folder / "run", lambda text: None),
                lambda: store.read_state(self.step),
                lambda: store.read_tensors(self.step, "encoder."),
            )
            for reader in readers:
                try:
                    reader()
                except UserError:
                    continue
            (self.step / name).write_bytes(self.sound[name])


class Lists(Target):
    """Text: class maps, image lists, landmark tables, lists of pairs."""

    def __init__(self, folder: Path):
        super().__init__(folder)
        points = " ".join(str(10 + n) for n in range(10))
        self.seeds = [
            b"label,name,images\n0,Ada,3\n1,Bo,2\n",
            f"a/1.jpg {points}\nb/2.jpg {points}\n".encode(),
            b"2 300\nAda 1 2\nAda 1 Bo 2\n",
            b"image,label,path\n0,0,a.jpg\n1,1,b.jpg\n",
        ]

    def read(self, content: bytes) -> None:
        path = self._file("list.txt", content)
        for reader in (
            lambda: read_classes(path, 2),
            lambda: read_landmarks(path),
            lambda: list(numbered_lines(path)),
            lambda: read_pairs(path),
            lambda: [ImageList(path, 2).path_of(image, image) for image in range(2)],
        ):
            try:
                reader()
            except UserError:
                continue


TARGETS: dict[str, type[Target]] = {
    "rec": Records, "idx": Indices, "bin": Bins, "image": Images, "config": Configs, "arguments": Arguments,
    "npz": Features, "weights": Weights, "checkpoint": Checkpoints, "lists": Lists,
}  # fmt: skip
