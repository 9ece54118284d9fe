#!/usr/bin/env bash
# LFW's images and pairs.txt -> lfw.bin.
#
#   scripts/lfw_to_bin.sh LFW PAIRS.txt OUT.bin (--landmarks FILE | --detector YUNET.onnx)
#   scripts/lfw_to_bin.sh ALIGNED PAIRS.txt OUT.bin
#
# The first form aligns the faces before, into OUT.bin.aligned; no image may be without a face then.
set -euo pipefail
if [ $# -ne 3 ] && [ $# -ne 5 ]; then sed -n '2,7p' "$0" | cut -c3-; exit 2; fi
source "$(dirname "$0")/pack_tool.sh"
images=$(absolute "$1") pairs=$(absolute "$2") out=$(absolute "$3")
if [ $# -eq 5 ]; then
    pack align "$images" "$out.aligned" "$4" "$(absolute "$5")"
    images="$out.aligned"
fi
pack pairs "$pairs" "$images" "$out"
