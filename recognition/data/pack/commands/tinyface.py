"""TinyFace's folders Probe, Gallery_Match and Gallery_Distractor -> train.rec in that order, names in images.csv.

    python -m recognition.data.pack tinyface TinyFace/aligned_pad_0.1_pad_high/ tinyface_rec/

Inside a folder the order is that of the identity and the image number in the file's name (26_2.jpg: identity 26, image 2).
A record has two labels: the identity, and the role: 0 probe, 1 gallery, 2 distractor. A distractor's number is no identity
of the probes', so its label is -1. Check the result with `verify --any-labels`.

Source: Cheng, Zhu, Gong, *Low-Resolution Face Recognition* (ACCV 2018).
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from recognition.data.pack import protocol_set
from recognition.data.pack.commands.folder import face_format, image_names
from recognition.data.pack.protocol_set import ProtocolImage, where_else, write_protocol_set
from utils.errors import UserError

HELP = "TinyFace's folders -> .rec in the protocol's order"
ROLES = ("Probe", "Gallery_Match", "Gallery_Distractor")
DISTRACTOR = -1
_NAME = re.compile(r"(\d{1,7})_(\d{1,9})\.\w+", re.ASCII)

add_arguments = protocol_set.add_arguments


def read_protocol(source: Path) -> list[ProtocolImage]:
    """The images in their order. `UserError`: a folder is missing or empty, or a name is not IDENTITY_NUMBER."""
    images = []
    for role, folder in enumerate(ROLES):
        if not (source / folder).is_dir():
            elsewhere = where_else(source, lambda place: all((place / role).is_dir() for role in ROLES))
            raise UserError(f"{source}: has no folder {folder}; give the folder with {', '.join(ROLES)}{elsewhere}")
        names = image_names(source / folder)
        if not names:
            raise UserError(f"{source / folder}: holds no images")
        parsed = []
        for name in names:
            match = _NAME.fullmatch(name)
            if match is None:
                raise UserError(f"{source / folder / name}: is not named IDENTITY_NUMBER.jpg; rename or remove it")
            parsed.append((int(match[1]), int(match[2]), name))
        for identity, _, name in sorted(parsed):
            images.append(ProtocolImage(f"{folder}/{name}", (DISTRACTOR if role == 2 else identity, role)))
    _check_mates(source, images)
    return images


def _check_mates(source: Path, images: list[ProtocolImage]) -> None:
    gallery = {image.labels[0] for image in images if image.labels[1] == 1}
    alone = [image.path for image in images if image.labels[1] == 0 and image.labels[0] not in gallery]
    if alone:
        raise UserError(f"{source}: {len(alone)} probes have no mate in Gallery_Match, the first is {alone[0]}; copy it again")


def run(arguments: argparse.Namespace) -> None:
    images = read_protocol(arguments.source)
    write_protocol_set(arguments.source, arguments.out, images, ("role",), face_format(arguments), arguments.workers)
    counts = [sum(image.labels[1] == role for image in images) for role in range(len(ROLES))]
    print(f"{arguments.out}: {counts[0]} probes, {counts[1]} gallery images, {counts[2]} distractors")
