"""The search for each kind of finding, with thresholds that the data suggest unless they are given."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch

from recognition.data.pack.commands.audit.duplicates import NEAR_PIXELS, Copies, candidate_threshold, find_copies, progress
from recognition.data.pack.commands.audit.evidence import Evidence
from recognition.data.pack.commands.audit.findings import Finding
from recognition.data.pack.commands.audit.identities import (
    CentreScores,
    Identities,
    divisions,
    halves,
    mean_cosines,
    nearest_identities,
    own_cosines,
)
from recognition.data.pack.commands.audit.shared import people_of, shared_people, thresholds_by_size
from recognition.data.pack.commands.audit.thresholds import low_quantile, outlier_limit

SUSPECTS_BY_CHANCE = 0.005  # share of the images that exceed the automatic threshold by chance
ALIKE_BY_CHANCE = 1.0  # identities, or people of another set, that exceed an automatic threshold by chance
DIFFERENT_HALVES = 0.1  # share of the identities whose halves are less similar than two identities that look like one person
MOST_ALIKE = 0.5  # how similar two people under one label may be, as a multiple of what one person's images usually are
SHOWN = 5  # images of an identity on a contact sheet


@dataclass
class Audit:
    """The audit of a data set.

    given: thresholds that replace the automatic ones, by name. approximate: use faiss for pairs of images. thresholds: those that
    were used. findings: in the order in which they were found; within a kind, the clearest first.
    """

    evidence: Evidence
    device: torch.device
    workers: int
    given: Mapping[str, float | None]
    approximate: bool = False
    thresholds: dict[str, float] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)

    def run(self, others: Sequence[Evidence]) -> None:
        """Search for all kinds of finding."""
        copies = self.find_copies(None, "comparing all images")
        labels = self.evidence.faces.labels()
        weights = np.ones(len(labels), np.float32)
        weights[copies.second[labels[copies.first] == labels[copies.second]]] = 0
        self.people = Identities(self.evidence, labels, weights)
        self.own = own_cosines(self.people)
        with progress("comparing images with identities", len(labels)) as advance:
            self.other_label, self.other_cosine = nearest_identities(self.people, self.device, advance)
        self.add_copies(copies)
        split = self.add_split()
        self.add_suspects(split)
        self.add_merged()
        for other in others:
            self.add_shared(other)

    def threshold(self, name: str, automatic: Callable[[], float]) -> float:
        """A threshold: the one that was given, else the automatic one. It is recorded."""
        value = self.given.get(name)
        self.thresholds[name] = automatic() if value is None else value
        return self.thresholds[name]

    def find_copies(self, other: Evidence | None, title: str) -> Copies:
        if "near_cosine" not in self.thresholds:
            self.threshold("near_cosine", lambda: candidate_threshold(self.evidence, self.device))
            self.threshold("near_pixels", lambda: NEAR_PIXELS)
        cosine, pixels = self.thresholds["near_cosine"], self.thresholds["near_pixels"]
        return find_copies(self.evidence, other, cosine, pixels, self.device, self.workers, title, self.approximate)

    def shown(self, label: int, but: int = -1) -> list[int]:
        """Some images of an identity."""
        images = self.people.images(label)
        return images[images != but][:SHOWN].tolist()

    # -------------------------------------------------------------------------------------------- kinds

    def add_copies(self, copies: Copies) -> None:
        """Of each group of copies, keep the image that fits its identity best, and drop the others."""
        labels = self.evidence.faces.labels()
        groups = _groups(copies.first, copies.second)
        fit = np.where(np.isfinite(self.own), self.own, -np.inf) - self.other_cosine
        strongest: dict[int, int] = {}  # image -> its strongest pair
        for pair in np.argsort(copies.score, kind="stable").tolist():
            strongest[int(copies.first[pair])] = strongest[int(copies.second[pair])] = pair
        hashes = self.evidence.hashes
        found = []
        for group in groups:
            one_label = len({int(labels[image]) for image in group}) == 1
            kept = group[0] if one_label else max(group, key=lambda image: (fit[image], -image))
            for image in group:
                if image == kept:
                    continue
                exact = hashes[image].min() == hashes[kept].min()
                mirrored = hashes[image, 0] != hashes[kept, 0] if exact else copies.mirrored[strongest[image]]
                notes = {"another identity": labels[image] != labels[kept], "mirrored": mirrored}
                score = 1.0 if exact else float(copies.score[strongest[image]])
                kind = "exact" if exact else "near"
                found.append(self._copy(kind, score, image, kept, None, ", ".join(note for note in notes if notes[note])))
        self.findings += sorted(found, key=lambda finding: (finding.kind, -finding.score))

    def _copy(
        self, kind: str, score: float, image: int, twin: int, other: Evidence | None, note: str, drop: bool = True
    ) -> Finding:
        labels = self.evidence.faces.labels()
        theirs = labels if other is None else other.faces.labels()
        faces = None if other is None else other.faces
        return Finding(
            kind, drop, score, int(labels[image]), image, int(theirs[twin]), twin, faces, note, left=[image], right=[twin]
        )

    def add_suspects(self, split: set[tuple[int, int]]) -> None:
        """Images that are more similar to another identity than to their own, unless both look like one person."""
        margin = self.other_cosine - self.own
        limit = self.threshold("suspect_margin", lambda: max(0.0, outlier_limit(margin, SUSPECTS_BY_CHANCE)))
        suspects = np.flatnonzero(margin >= limit)
        labels = self.evidence.faces.labels()
        for image in suspects[np.argsort(-margin[suspects], kind="stable")].tolist():
            label, other = int(labels[image]), int(self.other_label[image])
            if (label, other) in split or (other, label) in split:
                continue
            note = f"own {self.own[image]:.2f}, other {self.other_cosine[image]:.2f}"
            left, right = [image, *self.shown(label, image)[: SHOWN - 1]], self.shown(other)
            self.findings.append(
                Finding("suspect", False, float(margin[image]), label, image, other, note=note, left=left, right=right)
            )

    def add_split(self) -> set[tuple[int, int]]:
        """Pairs of identities as similar as halves of one identity, and more similar than strangers are by chance."""
        people = self.people
        scores = CentreScores(people, self.device)

        def automatic() -> float:
            strangers = scores.nearest()[people.counts > 0]
            return outlier_limit(strangers, ALIKE_BY_CHANCE / len(strangers))

        pairs = scores.pairs(self.threshold("split_score", automatic), low_quantile(halves(people), DIFFERENT_HALVES))
        for fewer, more, score in pairs:
            self.findings.append(
                Finding("split", False, score, fewer, other_label=more, left=self.shown(fewer), right=self.shown(more))
            )
        return {(fewer, more) for fewer, more, _ in pairs}

    def add_merged(self) -> None:
        """Identities that fall into two groups of images that are less similar than one person's."""
        means = mean_cosines(self.people)
        usual = float(np.nanmedian(means)) if np.isfinite(means).any() else 0.0
        found = list(divisions(self.people))
        scores = np.array([division.score(usual) for division in found])
        limit = self.threshold("merged_score", lambda: outlier_limit(scores, ALIKE_BY_CHANCE / max(len(scores), 1)))
        for place in np.argsort(-scores, kind="stable").tolist():
            division = found[place]
            if scores[place] >= limit and division.across <= MOST_ALIKE * usual:
                note = f"{len(division.first)} and {len(division.second)} images, mean cosine {division.across:.2f}"
                left, right = division.first[:SHOWN].tolist(), division.second[:SHOWN].tolist()
                self.findings.append(
                    Finding("merged", False, float(scores[place]), division.label, note=note, left=left, right=right)
                )

    def add_shared(self, other: Evidence) -> None:
        """Images, and then people, that the other set contains too."""
        copies = self.find_copies(other, f"comparing with {other.faces.path.name}")
        once: set[int] = set()
        same_pixels = np.isin(self.evidence.hashes.min(axis=1), other.hashes.min(axis=1))
        for pair in np.argsort(-copies.score, kind="stable").tolist():
            image, twin = int(copies.first[pair]), int(copies.second[pair])
            if image not in once:
                once.add(image)
                note = "mirrored" if copies.mirrored[pair] else ""
                drop = bool(same_pixels[image])
                self.findings.append(self._copy("shared_image", float(copies.score[pair]), image, twin, other, note, drop))
        others = people_of(other)
        share = ALIKE_BY_CHANCE / max(int((others.counts > 0).sum()), 1)
        given = self.given.get("shared_cosine")
        limits = thresholds_by_size(self.people, share, self.device)
        if given is not None:
            limits[:] = given
        self.thresholds["shared_cosine"] = float(limits.min())
        columns = (column.tolist() for column in shared_people(self.people, others, limits, self.device))
        seen: set[int] = set()
        for label, person, cosine in zip(*columns, strict=True):
            if label not in seen:
                seen.add(label)
                images = others.images(person)[:SHOWN].tolist()
                twin, theirs = images[0], int(other.faces.labels()[images[0]])
                left, drop = self.shown(label), bool(same_pixels[self.people.images(label)].any())
                self.findings.append(
                    Finding("shared_person", drop, cosine, label, None, theirs, twin, other.faces, left=left, right=images)
                )


def _groups(first: npt.NDArray[np.int64], second: npt.NDArray[np.int64]) -> list[list[int]]:
    """Connected components of pairs, each ascending."""
    group_of: dict[int, list[int]] = {}
    for i, j in zip(first.tolist(), second.tolist(), strict=True):
        one, two = group_of.setdefault(i, [i]), group_of.setdefault(j, [j])
        if one is not two:
            small, large = sorted((one, two), key=len)
            large += small
            for image in small:
                group_of[image] = large
    return [sorted(group) for group in {id(group): group for group in group_of.values()}.values()]
