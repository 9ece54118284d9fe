"""NVIDIA DALI's CPU pipeline on a flat RecordIO file. Runs in a Python of its own that has DALI.

dali_images.py REC IDX BATCH THREADS KIND; then a line with a number of batches on stdin gives a line with seconds on stdout.

KIND `normalised` is the pipeline that arcface_torch trains from, with its decoder on the CPU: decode, mirror at random, and give
normalised float32 [3, 112, 112]; shuffled among 32,768 records, one batch ahead. KIND `bytes` is the least that DALI can be asked
for: decode, mirror at random; shuffled among its default of 1,024, two batches ahead.
"""

import sys
import time

from nvidia.dali import fn, pipeline_def, types


def main() -> None:
    rec, index, batch, threads, kind = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5]
    ahead, shuffled = (1, 32768) if kind == "normalised" else (2, 1024)

    @pipeline_def(batch_size=batch, num_threads=threads, device_id=None, seed=1, prefetch_queue_depth=ahead)
    def pipeline():
        encoded, labels = fn.readers.mxnet(path=[rec], index_path=[index], random_shuffle=True, initial_fill=shuffled)
        images = fn.decoders.image(encoded, device="cpu", output_type=types.RGB)
        mirrored = fn.random.coin_flip()
        if kind == "bytes":
            return fn.flip(images, horizontal=mirrored), labels
        middle = [127.5] * 3
        return fn.crop_mirror_normalize(images, dtype=types.FLOAT, mean=middle, std=middle, mirror=mirrored), labels

    running = pipeline()
    running.build()
    running.run()
    print("ready", flush=True)
    for line in sys.stdin:
        for _ in range(6):  # what was made ahead while the others had their turn
            running.run()
        begin = time.perf_counter()
        for _ in range(int(line)):
            images, _ = running.run()
            images.as_array()
        print(time.perf_counter() - begin, flush=True)


if __name__ == "__main__":
    main()
