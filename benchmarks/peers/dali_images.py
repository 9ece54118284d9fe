"""NVIDIA DALI's CPU pipeline on a flat RecordIO file: decode, random flip. Runs in a Python of its own that has DALI.

dali_images.py REC IDX BATCH THREADS; then a line with a number of batches on stdin gives a line with seconds on stdout.
"""

import sys
import time

from nvidia.dali import fn, pipeline_def, types


def main() -> None:
    rec, index, batch, threads = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])

    @pipeline_def(batch_size=batch, num_threads=threads, device_id=None, seed=1)
    def pipeline():
        encoded, labels = fn.readers.mxnet(path=[rec], index_path=[index], random_shuffle=True, initial_fill=1024)
        images = fn.decoders.image(encoded, device="cpu", output_type=types.RGB)
        return fn.flip(images, horizontal=fn.random.coin_flip()), labels

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
