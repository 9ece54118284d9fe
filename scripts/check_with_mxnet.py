"""Check that MXNet reads what RecordWriter writes, and compare the speed of both readers. Each needs its own interpreter:

    .venv/bin/python        -m scripts.check_with_mxnet write FOLDER
    MXNET_VENV/bin/python   -m scripts.check_with_mxnet read FOLDER
    .venv/bin/python        -m scripts.check_with_mxnet speed DATA.rec
    MXNET_VENV/bin/python   -m scripts.check_with_mxnet speed DATA.rec

`write` needs the project, `read` needs mxnet 1.9.1 (Python 3.8, numpy < 1.24), `speed` measures the one that is installed.
docs/DATA.md shows how to create MXNET_VENV.
"""

import argparse
import hashlib
import json
import random
import sys
import time
from pathlib import Path

MAGIC = b"\x0a\x23\xd7\xce"
SIDE = 16


def payloads(count, seed):
    """Bytes with the magic at aligned and unaligned places, at both ends, and several times in a row; some are empty."""
    draw = random.Random(seed)
    for _ in range(count):
        pieces = [bytes(draw.getrandbits(8) for _ in range(draw.choice([0, 1, 2, 3, 4, 8, 57]))) for _ in range(4)]
        yield MAGIC.join(pieces[: draw.randrange(5)]) + MAGIC * draw.randrange(3)


def insightface():
    """(key, label, payload) of images, identity records, and record 0 with their keys."""
    images, identities = 40, 5
    for key, content in enumerate(payloads(images, seed=1), 1):
        yield key, [key % identities, 0.5] if key % 4 == 0 else key % identities, content or b"an image"
    for identity in range(identities):
        yield images + 1 + identity, [1 + 8 * identity, 9 + 8 * identity], b""
    yield 0, [images + 1, images + identities + 1], b""


def im2rec():
    """Images with shuffled keys from 0."""
    keys = list(range(300))
    random.Random(2).shuffle(keys)
    for key, content in zip(keys, payloads(300, seed=3)):  # noqa: B905  (runs under Python 3.8 too)
        yield key, key % 11, content


def labels():
    """One to seven labels per record."""
    for key, content in enumerate(payloads(60, seed=4)):
        yield 3 * key, [place / 4 for place in range(1 + key % 7)], content


def flat():
    """PNGs and raw images without metadata records, for ImageRecordIter."""
    import cv2
    import numpy as np

    noise = np.random.default_rng(5)
    for key in range(24):
        _, image = cv2.imencode((".png", ".bmp")[key % 2], noise.integers(0, 256, (SIDE, SIDE, 3), np.uint8))
        yield key, key % 3, image.tobytes()


def write(folder):
    from recognition.data import RecordWriter

    expected: dict = {}
    for kind in (insightface, im2rec, labels, flat):
        name = f"{kind.__name__}.rec"
        expected[name] = []
        with RecordWriter(folder / name) as writer:
            for key, label, content in kind():
                writer.write(key, label, content, id2=key % 2)
                several = isinstance(label, list)
                record = dict(key=key, label=label if several else [label], flag=len(label) if several else 0)
                expected[name].append(dict(record, id=key, id2=key % 2, payload=content.hex()))
    for record, (_, _, image) in zip(expected["flat.rec"], flat()):  # noqa: B905
        record["pixels"] = hashlib.sha256(planes(image)).hexdigest()
    (folder / "expected.json").write_text(json.dumps(expected))
    print(f"wrote {len(expected)} files with {sum(len(records) for records in expected.values())} records to {folder}")


def planes(image):
    """The pixels as ImageRecordIter returns them: RGB, one plane per colour."""
    from utils.images import decode_image

    return decode_image(image, "flat.rec").transpose(2, 0, 1).tobytes()


def read(folder):
    import mxnet

    def check(record, raw, where):
        header, payload = mxnet.recordio.unpack(raw)
        label = header.label.tolist() if header.flag else [header.label]
        found = dict(label=label, flag=header.flag, id=header.id, id2=header.id2, payload=payload.hex())
        for name, value in found.items():
            if value != record[name]:
                sys.exit(f"{where}: {name}: mxnet read {value!r}, expected {record[name]!r}")

    expected = json.loads((folder / "expected.json").read_text())
    for name, records in expected.items():
        rec = str(folder / name)
        indexed = mxnet.recordio.MXIndexedRecordIO(rec[:-3] + "idx", rec, "r")
        if sorted(indexed.keys) != sorted(record["key"] for record in records):
            sys.exit(f"{name}: mxnet found different keys")
        for record in random.Random(0).sample(records, len(records)):
            check(record, indexed.read_idx(record["key"]), f"{name}: key {record['key']}")
        sequence = mxnet.recordio.MXRecordIO(rec, "r")
        for record in records:
            check(record, sequence.read(), f"{name}: in order, key {record['key']}")
        if sequence.read() is not None:
            sys.exit(f"{name}: mxnet found more records than were written")
        print(f"{name}: {len(records)} records, by index and in order")

    flat = mxnet.io.ImageRecordIter(
        path_imgrec=str(folder / "flat.rec"), data_shape=(3, SIDE, SIDE), batch_size=1, shuffle=False, preprocess_threads=1
    )
    images = 0
    for record, batch in zip(expected["flat.rec"], flat):  # noqa: B905
        pixels = batch.data[0].asnumpy()[0].astype("uint8").tobytes()
        same = hashlib.sha256(pixels).hexdigest() == record["pixels"]
        if not same or batch.label[0].asnumpy().tolist() != record["label"]:
            sys.exit(f"flat.rec: ImageRecordIter decoded key {record['key']} differently")
        images += 1
    if images != len(expected["flat.rec"]):
        sys.exit(f"flat.rec: ImageRecordIter returned {images} images of {len(expected['flat.rec'])}")
    print(f"flat.rec: {images} images through ImageRecordIter")
    print(f"mxnet {mxnet.__version__}: all read back byte for byte")


def speed(rec, reads=100_000, repeats=5):
    """Measure random reads with the header unpacked: one thread, warm cache; best and median of `repeats` runs."""
    try:
        import mxnet

        opened = mxnet.recordio.MXIndexedRecordIO(str(rec.with_suffix(".idx")), str(rec), "r")
        keys, name = list(opened.keys), f"mxnet {mxnet.__version__}"

        def read_one(key):
            return mxnet.recordio.unpack(opened.read_idx(key))
    except ImportError:
        from recognition.data import RecordReader

        reader = RecordReader(rec)
        keys, name, read_one = reader.keys.tolist(), "RecordReader", reader.read
    keys = random.Random(0).choices(keys, k=reads)
    rates = []
    for _ in range(repeats):
        start = time.perf_counter()
        for key in keys:
            read_one(key)
        rates.append(reads / (time.perf_counter() - start))
    rates.sort()
    print(f"{name}: best {rates[-1]:,.0f} records/s, median {rates[len(rates) // 2]:,.0f} records/s of {repeats} runs")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["write", "read", "speed"])
    parser.add_argument("path", type=Path)
    arguments = parser.parse_args()
    {"write": write, "read": read, "speed": speed}[arguments.what](arguments.path)


if __name__ == "__main__":
    main()
