#!/usr/bin/env bash
# TinyFace's folders (Probe, Gallery_Match, Gallery_Distractor) -> a packed set in the protocol's order, checked.
#
#   scripts/tinyface_to_rec.sh TINYFACE/aligned_pad_0.1_pad_high OUT [options of `pack tinyface`]
set -euo pipefail
if [ $# -lt 2 ]; then sed -n '2,4p' "$0" | cut -c3-; exit 2; fi
source "$(dirname "$0")/pack_tool.sh"
faces=$(absolute "$1") out=$(absolute "$2"); shift 2
pack tinyface "$faces" "$out" "$@"
pack verify "$out" --any-labels
