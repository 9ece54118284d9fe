"""TinyFace's folders Probe, Gallery_Match and Gallery_Distractor -> train.rec in that order, with the file names in images.csv.

    python -m recognition.data.pack tinyface TinyFace/aligned_pad_0.1_pad_high/ tinyface_rec/

Within a folder, images are ordered by the identity and the image number in the file name (26_2.jpg: identity 26, image 2). A
record has two labels: the identity, and the role (0 probe, 1 gallery, 2 distractor). The numbers of distractors are not
identities, so their label is -1. Check the result with `verify --any-labels`.

Source: Cheng, Zhu, Gong, *Low-Resolution Face Recognition* (ACCV 2018).
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from recognition.data.pack import protocol_set
from recognition.data.pack.protocol_set import ProtocolImage, suggest_folders, write_protocol_set
from utils.errors import UserError
from utils.images import LeftOut, image_names

HELP = "TinyFace's folders -> .rec in the protocol's order"
ROLES = ("Probe", "Gallery_Match", "Gallery_Distractor")
_PROBE, _MATCH, _DISTRACTOR = range(3)
_NO_IDENTITY = -1
_NAME = re.compile(r"(\d{1,7})_(\d{1,9})\.\w+", re.ASCII)

add_arguments = protocol_set.add_arguments


def read_protocol(source: Path, left_out: LeftOut | None = None) -> list[ProtocolImage]:
    """The images in their order. Raises UserError if a folder is missing or empty, or a name is not IDENTITY_NUMBER."""
    images = []
    for role, folder in enumerate(ROLES):
        if not (source / folder).is_dir():
            elsewhere = suggest_folders(source, lambda place: all((place / name).is_dir() for name in ROLES))
            raise UserError(f"{source}: has no folder {folder}; give the folder with {', '.join(ROLES)}{elsewhere}")
        names = image_names(source / folder, left_out)
        if not names:
            raise UserError(f"{source / folder}: contains no images")
        parsed = []
        for name in names:
            match = _NAME.fullmatch(name)
            if match is None:
                raise UserError(f"{source / folder / name}: is not named IDENTITY_NUMBER.jpg; rename or remove it")
            parsed.append((int(match[1]), int(match[2]), name))
        for identity, _, name in sorted(parsed):
            images.append(ProtocolImage(f"{folder}/{name}", (_NO_IDENTITY if role == _DISTRACTOR else identity, role)))
    _check_matches(source, images)
    return images


def _check_matches(source: Path, images: list[ProtocolImage]) -> None:
    """Raise UserError if a probe has no image of the same identity in the gallery."""
    gallery = {image.labels[0] for image in images if image.labels[1] == _MATCH}
    alone = [image.path for image in images if image.labels[1] == _PROBE and image.labels[0] not in gallery]
    if alone:
        problem = f"{len(alone)} probes have no match in Gallery_Match, the first is {alone[0]}"
        raise UserError(f"{source}: {problem}; copy the data set again")


def run(arguments: argparse.Namespace) -> None:
    left_out = LeftOut()
    images = read_protocol(arguments.source, left_out)
    left_out.warn(arguments.source)
    write_protocol_set(arguments, images, ("role",))
    probes, matches, distractors = (sum(image.labels[1] == role for image in images) for role in range(len(ROLES)))
    print(f"{arguments.out}: {probes} probes, {matches} gallery images, {distractors} distractors")
