"""People of a data set who also appear in another one, such as a verification set.

The images of a person in the other set are compared, as a group, with the centre of each identity. How similar a group of
strangers becomes by chance depends on its size, so the thresholds are derived for each size: from groups of the audited set
itself, compared with the identities that they do not belong to.
"""

from __future__ import annotations

import numpy as np
import torch

from eval.protocols.products import close_pairs, nearest
from recognition.data.pack.commands.audit.evidence import Evidence
from recognition.data.pack.commands.audit.identities import FloatArray, Identities, Int64Array, unit
from recognition.data.pack.commands.audit.thresholds import low_quantile, outlier_limit

SIZES = (1, 2, 4, 8, 16)  # of groups; a group of another size is judged as the next smaller one
_SAMPLE = 5000  # groups of each size
_LOST = 0.05  # share of groups that would not be recognised as their own identity


def people_of(evidence: Evidence) -> Identities:
    """The people of the other set. An image with a negative label is a person of its own."""
    labels = evidence.faces.labels()
    alone = labels < 0
    labels = np.where(alone, labels.max(initial=-1) + np.cumsum(alone), labels)
    return Identities(evidence, labels, np.ones(len(labels), np.float32))


def thresholds_by_size(people: Identities, share: float, device: torch.device, seed: int = 0) -> FloatArray:
    """The cosine from which a group of each of `SIZES` counts as an identity: float32 [sizes].

    share: of groups of strangers that may reach it by chance.
    """
    rng = np.random.default_rng(seed)
    limits: list[float] = []
    for size in SIZES:
        labels = np.flatnonzero(people.counts > size)
        labels = rng.permutation(labels)[:_SAMPLE]
        if not len(labels):
            limits.append(limits[-1] if limits else np.inf)
            continue
        sums = np.stack([people.features(rng.permutation(people.images(label))[:size]).sum(axis=0) for label in labels.tolist()])
        strangers = nearest(unit(sums), people.centres, labels, device)[1]
        own = np.einsum("nd,nd->n", unit(sums), unit(people.sums[labels] - sums))
        limits.append(max(outlier_limit(strangers, share), low_quantile(own, _LOST)))
    return np.array(limits, np.float32)


def shared_people(
    people: Identities, others: Identities, limits_by_size: FloatArray, device: torch.device
) -> tuple[Int64Array, Int64Array, FloatArray]:
    """Identities and people of the other set that look like them: int64 [P] each, and cosines [P], in descending order."""
    lowest = max(float(limits_by_size.min()), 1e-6)  # people without images have centres of zeros
    other, label, cosine = close_pairs(others.centres, people.centres, lowest, device)
    size = np.searchsorted(np.array(SIZES), others.counts[other], "right") - 1
    enough = cosine >= limits_by_size[size]
    order = np.argsort(-cosine[enough], kind="stable")
    return label[enough][order], other[enough][order], cosine[enough][order]
