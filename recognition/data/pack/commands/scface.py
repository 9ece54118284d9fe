"""SCface's aligned images -> train.rec in the protocol's order, with the file names in images.csv.

    python -m recognition.data.pack scface SCface/aligned/ scface_rec/

File names are the data set's: 001_frontal.jpg, 001_cam1_2.jpg (subject, camera, distance), 001_cam8.jpg (infrared). Images are
ordered by subject, then camera, then distance; each subject begins with the frontal image. A record has three labels: subject,
camera (0 for frontal) and distance (1: 4.2 m, 2: 2.6 m, 3: 1.0 m, 0: none). Use `align` to align images first, and check the
result with `verify --any-labels`.

Source: Grgic, Delac, Grgic, *SCface – surveillance cameras face database* (Multimedia Tools and Applications, 2011).
"""

from __future__ import annotations

import argparse
import itertools
import re
from pathlib import Path

from recognition.data.pack import protocol_set
from recognition.data.pack.protocol_set import ProtocolImage, suggest_folders, write_protocol_set
from utils.errors import UserError
from utils.images import LeftOut, image_names

HELP = "SCface's images -> .rec in the protocol's order"
_NAME = re.compile(r"(\d{3})_(?:frontal|cam(\d)(?:_(\d))?)\.\w+", re.ASCII)

add_arguments = protocol_set.add_arguments


def read_protocol(source: Path, left_out: LeftOut | None = None) -> list[ProtocolImage]:
    """The images in their order. Raises UserError if there are none, or if a name is not SCface's or occurs twice."""
    images = []
    for name in image_names(source, left_out):
        match = _NAME.fullmatch(name)
        if match is None:
            raise UserError(f"{source / name}: is not named like SCface's images (001_cam1_2.jpg); rename or remove it")
        images.append(ProtocolImage(name, (int(match[1]), int(match[2] or 0), int(match[3] or 0))))
    images.sort(key=lambda image: image.labels)
    if not images:
        elsewhere = suggest_folders(source, lambda folder: any(map(_NAME.fullmatch, image_names(folder))))
        raise UserError(f"{source}: contains no images; give the folder with 001_frontal.jpg and so on{elsewhere}")
    for before, after in itertools.pairwise(images):
        if before.labels == after.labels:
            raise UserError(f"{source}: {before.path} and {after.path} are the same image by name; remove one")
    return images


def run(arguments: argparse.Namespace) -> None:
    left_out = LeftOut()
    images = read_protocol(arguments.source, left_out)
    left_out.warn(arguments.source)
    write_protocol_set(arguments, images, ("camera", "distance"))
    subjects = len({image.labels[0] for image in images})
    print(f"{arguments.out}: {len(images)} images of {subjects} subjects")
