#!/usr/bin/env bash
# Packs a data set from images and checks the result. From any folder.
#
#   scripts/pack.sh photos   PHOTOS OUT ALIGNMENT [options of `pack align`]    one folder per person -> OUT/aligned, packed, train
#   scripts/pack.sh faces    FACES OUT [options of `pack folder`]              aligned faces, one folder per person
#   scripts/pack.sh tinyface FOLDER OUT [options of `pack tinyface`]           Probe, Gallery_Match, Gallery_Distractor
#   scripts/pack.sh scface   IMAGES OUT [ALIGNMENT]                            in the protocol's order
#   scripts/pack.sh lfw      IMAGES OUT.bin PAIRS.txt [ALIGNMENT]              a verification set
#
# ALIGNMENT is `--landmarks FILE` or `--detector YUNET.onnx`; without it the images must be aligned. OUT must not exist.
# For photos, SHARDS and MIN_IMAGES (1 each) are options of `pack folder`, HELD_OUT (0.2; 0 leaves it out) and PAIRS (3000) of `pack split`.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh" 3 "$@"

kind=$1 images=$2 out=$3
shift 3

pack() { "$python" -m recognition.data.pack "$@"; }

# align [ALIGNMENT]: aligns the images, into OUT.aligned, if they are not aligned.
align() {
    if [ $# -gt 0 ]; then
        pack align "$images" "$out.aligned" "$@"
        images="$out.aligned"
    fi
}

case $kind in
    photos)
        pack align "$images" "$out/aligned" --on-error skip "$@"
        pack folder "$out/aligned" "$out/packed" --shards "${SHARDS:-1}" --min-images "${MIN_IMAGES:-1}"
        pack verify "$out/packed"
        [ "${HELD_OUT:-0.2}" = 0 ] || pack split "$out/packed" "$out/train" --held-out "${HELD_OUT:-0.2}" --pairs "${PAIRS:-3000}"
        ;;
    faces)
        pack folder "$images" "$out" "$@"
        pack verify "$out"
        ;;
    tinyface)
        pack tinyface "$images" "$out" "$@"
        pack verify "$out" --any-labels
        ;;
    scface)
        align "$@"
        pack scface "$images" "$out"
        pack verify "$out" --any-labels
        ;;
    lfw)
        [ $# -ge 1 ] || { print_help >&2; exit 2; }
        pairs=$1
        shift
        align "$@"
        pack pairs "$pairs" "$images" "$out"
        ;;
    *) echo "error: unknown kind '$kind'; known: photos, faces, tinyface, scface, lfw" >&2; exit 2 ;;
esac
