"""MXNet's own random access to a RecordIO file: read by key, unpack the header. Runs in a separate environment that has MXNet.

mxnet_records.py REC IDX; for each line on stdin with a number of records, it prints a line with the seconds.
"""

import random
import sys
import time

from mxnet import recordio


def main() -> None:
    rec, index = sys.argv[1], sys.argv[2]
    reader = recordio.MXIndexedRecordIO(index, rec, "r")
    keys = list(reader.keys)
    print("ready", flush=True)
    for line in sys.stdin:
        wanted = random.choices(keys, k=int(line))
        begin = time.perf_counter()
        for key in wanted:
            recordio.unpack(reader.read_idx(key))
        print(time.perf_counter() - begin, flush=True)


if __name__ == "__main__":
    main()
