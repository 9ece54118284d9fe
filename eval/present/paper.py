"""Published figures, to print next to measured ones: the paper's, and those of other benchmarks' authors.

*QGFace: Quality-Guided Joint Training for Mixed-Quality Face Recognition*, Youzhe Song and Feng Wang, tables I-V: ResNet34
trained on VGGFace2. All in %, as printed. Nothing here was measured by this software; printed rows name their source.
"""

from __future__ import annotations

from collections.abc import Iterable

PAPER = "paper"

SC1, SC2, SC3, TINYFACE, IJBB, HQ = "SC d1", "SC d2", "SC d3", "TinyFace", "IJB-B", "HQ avg"
"""Columns: SCface rank 1 at 4.2 m, 2.6 m, 1.0 m; TinyFace rank 1; IJB-B TAR@FAR=1e-4; mean accuracy of the five HQ sets."""

HQ_SETS = ("LFW", "CFP-FP", "AgeDB", "CPLFW", "CALFW")

_MAIN = (SC1, SC2, SC3, TINYFACE, IJBB, HQ)
_FULL = (*_MAIN, *HQ_SETS)
_SC = (SC1, SC2, SC3)

Row = dict[str, float]
Table = dict[str, Row]


def _table(columns: tuple[str, ...], rows: dict[str, tuple[float, ...]]) -> Table:
    assert all(len(values) == len(columns) for values in rows.values())
    return {name: dict(zip(columns, values, strict=True)) for name, values in rows.items()}


TABLE_I = _table(
    _MAIN,
    {
        "Baseline": (61.69, 97.23, 99.85, 63.98, 90.26, 95.62),
        "A": (66.77, 99.08, 100.0, 67.49, 74.07, 95.76),
        "B": (68.15, 98.46, 100.0, 67.03, 70.45, 95.73),
        "C": (70.92, 98.62, 99.69, 66.58, 90.59, 95.71),
        "D": (88.62, 99.23, 100.0, 68.80, 89.50, 95.46),
        "E": (92.31, 99.54, 100.0, 69.85, 91.05, 95.43),
    },
)
"""Ablation. A: AdaFace's augmentation; B: A and the partition; C: B and the contrastive loss; D: the paper's augmentation;
E: everything, which is the method."""

IJBB_CAVEAT = (
    "About the paper's rows: its authors' evaluation during training normalises features and uses no detector score (N0D0). "
    "Weighting by the norm may hide the collapse of rows A and B; --setting all shows all settings."
)

METHOD = "queue: proxy-updated"  # the row of table II

TABLE_II = _table(
    _FULL,
    {
        "queue: no": (87.85, 99.38, 100.0, 68.24, 90.57, 95.47, 99.45, 96.00, 94.20, 94.67, 93.05),
        "queue: batch": (87.54, 99.38, 100.0, 68.67, 87.38, 95.28, 99.55, 95.96, 94.38, 93.85, 92.68),
        "queue: momentum": (63.08, 97.85, 99.85, 62.34, 88.70, 95.18, 99.55, 96.03, 93.98, 94.65, 91.68),
        METHOD: (92.31, 99.54, 100.0, 69.85, 91.05, 95.43, 99.50, 96.03, 94.00, 94.48, 93.12),
    },
)

TABLE_III = _table(
    _FULL,
    {
        "b: no": (90.77, 99.69, 100.0, 69.80, 91.26, 95.08, 99.58, 95.79, 93.95, 93.42, 92.67),
        "b = 0.1": (86.00, 99.54, 100.0, 68.13, 90.87, 95.41, 99.53, 95.87, 94.33, 94.47, 92.83),
        "b = 0.2": (92.31, 99.54, 100.0, 69.85, 91.05, 95.43, 99.50, 96.03, 94.00, 94.48, 93.12),
        "b = 0.3": (88.92, 99.54, 100.0, 68.51, 89.33, 94.95, 99.55, 95.03, 94.27, 93.77, 92.15),
    },
)

TABLE_IV = _table(
    _SC,
    {
        "T-C": (45.10, 85.90, 96.10),
        "FAN": (62.00, 90.00, 94.00),
        "RAN": (70.50, 96.00, 98.00),
        "Lai et al.": (79.70, 95.70, 98.20),
        "FAN-FT": (77.50, 95.00, 98.30),
        "RAN-FT": (81.30, 97.80, 98.80),
        "DDL": (86.80, 98.30, 98.30),
        "RIFR": (88.30, 98.30, 98.60),
        "SR-DCR": (74.10, 93.70, 97.2),
        "Ullah et al.": (60.81, 90.45, 98.04),
        "IDEA-Net": (90.76, 98.50, 99.25),
        "NPT-Loss": (85.69, 99.08, 99.08),
        "AdaFace": (61.69, 97.23, 99.85),
        "AdaFace-Aug": (66.77, 99.08, 100.0),
        "PENB-FT": (91.8, 99.0, 99.3),
        "QGFace": (92.31, 99.54, 100.0),
    },
)

TABLE_V = _table(
    (TINYFACE,),
    {
        "QualNet50-LM": (35.54,),
        "MobileFaceNet": (48.70,),
        "T-C": (58.60,),
        "URL": (63.89,),
        "RIFR": (70.40,),
        "MIND-ResNet-50-FT": (66.82,),
        "CSRI-FT": (44.80,),
        "SRDA": (34.15,),
        "CFSM": (63.01,),
        "IDEA-Net": (68.13,),
        "CurricularFace (R100, MS1MV2)": (63.68,),
        "PENB-FT": (39.0,),
        "AdaFace": (63.98,),
        "AdaFace (R100, MS1MV2)": (68.21,),
        "QGFace": (69.85,),
    },
)

TABLES = {"I": TABLE_I, "II": TABLE_II, "III": TABLE_III, "IV": TABLE_IV, "V": TABLE_V}

_SET_NAMES = {"lfw": "LFW", "cfpfp": "CFP-FP", "agedb30": "AgeDB", "agedb": "AgeDB", "cplfw": "CPLFW", "calfw": "CALFW"}


def hq_set(name: str) -> str | None:
    """The paper's name of a verification set, from its file name (`agedb_30` -> AgeDB); None if the paper does not have it."""
    return _SET_NAMES.get(name.lower().replace("_", "").replace("-", ""))


XQLFW = {
    "ArcFace, XQLFW's authors": 74.22,
    "MagFace, XQLFW's authors": 76.95,
    "FaceTransformer, XQLFW's authors": 87.90,
    "BT-M, XQLFW's authors": 83.60,
    "ST-M1, XQLFW's authors": 90.97,
    "ST-M2, XQLFW's authors": 90.82,
    "ArcFace, octuplet loss": 93.27,
    "MagFace, octuplet loss": 92.92,
    "FaceTransformer, octuplet loss": 95.12,
}
"""Accuracy on XQLFW, in %: from martlgap.github.io/xqlfw, and fine-tuned, from github.com/Martlgap/octuplet-loss."""

RFW = _table(
    ("rfw_caucasian", "rfw_indian", "rfw_asian", "rfw_african"),
    {
        "Center loss, RFW's authors": (87.18, 81.92, 79.32, 78.00),
        "SphereFace, RFW's authors": (90.80, 87.02, 82.95, 82.28),
        "ArcFace, RFW's authors": (92.15, 88.00, 83.98, 84.93),
        "VGGFace2, RFW's authors": (89.90, 86.13, 84.93, 83.38),
    },
)
"""Accuracy on the groups of RFW, in %: Wang et al., ICCV 2019, table 1."""

_IJBS_COLUMNS = ("rank 1", "rank 5", "DIR@FPIR=0.01")
IJBS = {
    protocol: _table(_IJBS_COLUMNS, {"AdaFace R100, MS1MV2": ms1mv2, "AdaFace R100, WebFace4M": webface4m})
    for protocol, ms1mv2, webface4m in (
        ("single", (65.26, 70.53, 51.66), (70.42, 75.29, 58.27)),
        ("booking", (66.27, 71.61, 50.87), (70.93, 76.11, 58.02)),
        ("surveillance", (23.74, 37.47, 2.50), (35.05, 48.22, 4.96)),
    )
}
"""IJB-S by protocol, in %: Kim et al., *AdaFace* (CVPR 2022), the table of low-quality results."""


def verification(name: str) -> Row:
    """Published accuracies in % on a verification set, by its name: source -> accuracy."""
    if (column := hq_set(name)) is not None:
        return {f"QGFace, {PAPER}, table II": TABLE_II[METHOD][column]}
    if name.lower() == "xqlfw":
        return XQLFW
    return {source: row[name] for source, row in RFW.items() if name in row}


def rows(tables: Iterable[str], columns: Iterable[str]) -> list[tuple[str, Row]]:
    """The rows of these tables that have any of these columns; names are marked, such as `E (paper, table I)`."""
    wanted = set(columns)
    return [
        (f"{name} ({PAPER}, table {number})", row)
        for number in tables
        for name, row in TABLES[number].items()
        if wanted & set(row)
    ]
