"""NVIDIA DALI's CPU pipeline on a flat RecordIO file. Runs in a separate environment that has DALI and torch.

dali_images.py REC IDX BATCH THREADS KIND; for each line on stdin with a number of batches, it prints a line with the seconds.

KIND `normalised` is what arcface_torch trains from, with its decoder on the CPU: decode, mirror at random, and return normalised
float32 [3, 112, 112], through DALI's iterator for torch; shuffled among 32,768 records, one batch ahead. KIND `bytes` is the
least that DALI can be asked for: decode, mirror at random; shuffled among its default of 1,024, two batches ahead, as numpy.
"""

import itertools
import sys
import time
from collections.abc import Iterator

from nvidia.dali import fn, pipeline_def, types
from nvidia.dali.plugin.pytorch import DALIClassificationIterator


def main() -> None:
    rec, index, batch, threads, kind = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5]
    ahead, shuffled = (1, 32768) if kind == "normalised" else (2, 1024)

    @pipeline_def(batch_size=batch, num_threads=threads, device_id=None, seed=1, prefetch_queue_depth=ahead)
    def pipeline():
        encoded, labels = fn.readers.mxnet(
            path=[rec], index_path=[index], random_shuffle=True, initial_fill=shuffled, name="train"
        )
        images = fn.decoders.image(encoded, device="cpu", output_type=types.RGB)
        mirrored = fn.random.coin_flip()
        if kind == "bytes":
            return fn.flip(images, horizontal=mirrored), labels
        middle = [127.5] * 3
        return fn.crop_mirror_normalize(images, dtype=types.FLOAT, mean=middle, std=middle, mirror=mirrored), labels

    running = pipeline()
    running.build()
    batches = _arrays(running) if kind == "bytes" else _tensors(running)
    next(batches)
    print("ready", flush=True)
    for line in sys.stdin:
        for _ in range(6):  # what was made ahead while the others had their turn
            next(batches)
        begin = time.perf_counter()
        for _ in itertools.repeat(None, int(line)):
            next(batches)
        print(time.perf_counter() - begin, flush=True)


def _arrays(pipeline) -> Iterator:
    while True:
        yield pipeline.run()[0].as_array()


def _tensors(pipeline) -> Iterator:
    epochs = DALIClassificationIterator(pipelines=[pipeline], reader_name="train", auto_reset=True)
    while True:
        yield from epochs


if __name__ == "__main__":
    main()
