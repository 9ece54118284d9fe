#!/usr/bin/env bash
# SCface's images -> a packed set in the protocol's order, checked.
#
#   scripts/scface_to_rec.sh ALIGNED OUT
#   scripts/scface_to_rec.sh IMAGES OUT LANDMARKS       (all.txt: name and five points a line; aligns into OUT.aligned)
set -euo pipefail
if [ $# -lt 2 ] || [ $# -gt 3 ]; then sed -n '2,5p' "$0" | cut -c3-; exit 2; fi
source "$(dirname "$0")/pack_tool.sh"
images=$(absolute "$1") out=$(absolute "$2")
if [ $# -eq 3 ]; then
    pack align "$images" "$out.aligned" --landmarks "$(absolute "$3")"
    images="$out.aligned"
fi
pack scface "$images" "$out"
pack verify "$out" --any-labels
