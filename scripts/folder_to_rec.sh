#!/usr/bin/env bash
# A folder of aligned faces (a folder a person) -> a packed data set, checked.
#
#   scripts/folder_to_rec.sh FACES OUT [options of `pack folder`, such as --shards 8 --min-images 2]
set -euo pipefail
if [ $# -lt 2 ]; then sed -n '2,4p' "$0" | cut -c3-; exit 2; fi
source "$(dirname "$0")/pack_tool.sh"
faces=$(absolute "$1") out=$(absolute "$2"); shift 2
pack folder "$faces" "$out" "$@"
pack verify "$out"
