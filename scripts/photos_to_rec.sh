#!/usr/bin/env bash
# A folder of photos (a folder a person) -> aligned faces -> a packed data set, checked.
#
#   scripts/photos_to_rec.sh PHOTOS OUT (--landmarks FILE | --detector YUNET.onnx) [options of `pack align`]
#
# OUT/aligned holds the faces, OUT/packed the data set; both must not exist. PYTHON names another interpreter,
# SHARDS and MIN_IMAGES (1 each) are handed to `pack folder`.
set -euo pipefail
if [ $# -lt 4 ]; then sed -n '2,7p' "$0" | cut -c3-; exit 2; fi
source "$(dirname "$0")/pack_tool.sh"
photos=$(absolute "$1") out=$(absolute "$2"); shift 2
options=()
for option in "$@"; do
    if [ -e "$option" ]; then option=$(absolute "$option"); fi
    options+=("$option")
done
pack align "$photos" "$out/aligned" --on-error skip "${options[@]}"
pack folder "$out/aligned" "$out/packed" --shards "${SHARDS:-1}" --min-images "${MIN_IMAGES:-1}"
pack verify "$out/packed"
