"""The page itself: layout, typography, tables, charts, pictures. It adapts to light and dark mode and to narrow screens."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING

import cv2
import numpy as np

from eval.present.style import COLOURS, GRID, INK, PAPER, to_svg
from eval.present.tables import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_WIDE, _NARROW = (5.0, 3.1), (3.7, 2.8)  # inches, of two or three charts in a row
_THEME = {INK: "var(--ink)", GRID: "var(--rule)", PAPER: "var(--card)"}
_THEME |= {colour.lower(): f"var(--c{index})" for index, colour in enumerate(COLOURS)}

_STYLE = """
:root{color-scheme:light dark;--paper:#fdfdfb;--card:#fff;--ink:#1d2126;--soft:#5d6670;--rule:#e3e5e4;--accent:#0b6e99;
--c0:#0072b2;--c1:#d55e00;--c2:#009e73;--c3:#b3578f;--c4:#3d9bd1;--c5:#b87f00;--c6:#444}
@media(prefers-color-scheme:dark){:root{--paper:#14171a;--card:#1b1f23;--ink:#e6e8ea;--soft:#9aa4ae;--rule:#30363c;--accent:#66bde4;
--c0:#56b4e9;--c1:#f2853d;--c2:#2fc79a;--c3:#dd8fbd;--c4:#8ccdf0;--c5:#edb732;--c6:#ccc}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
main{max-width:1080px;margin:0 auto;padding:2.2rem 1.1rem 4rem}
h1{font-size:1.7rem;line-height:1.2;margin:0 0 .3rem;overflow-wrap:anywhere}
h2{font-size:1.15rem;margin:2.6rem 0 .8rem;padding-top:.9rem;border-top:1px solid var(--rule)}
p{max-width:70ch;margin:.3rem 0 .9rem}.soft,figcaption small{color:var(--soft)}.note{color:var(--soft);font-size:.9rem}
dl{display:grid;grid-template-columns:repeat(auto-fill,minmax(9.5rem,1fr));gap:.7rem 1rem;margin:1.3rem 0}
dt{color:var(--soft);font-size:.78rem}dd{margin:0;font-variant-numeric:tabular-nums;font-weight:600;overflow-wrap:anywhere}
.grid{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,22rem),1fr));gap:1rem}
.three{grid-template-columns:repeat(auto-fit,minmax(min(100%,19rem),1fr))}
h3{font-size:.95rem;margin:1.3rem 0 .6rem}
.grid>figure:only-child{max-width:34rem}
figure{margin:0;padding:.8rem .9rem;background:var(--card);border:1px solid var(--rule);
border-radius:8px;min-width:0;container-type:inline-size}
figcaption{font-weight:600;font-size:.95rem;margin-bottom:.4rem}figcaption small{display:block;font-weight:400;font-size:.82rem}
svg{display:block;width:100%;height:auto}svg *{stroke-linejoin:round}svg text{fill:var(--ink);font-variant-numeric:tabular-nums}
.scroll{overflow-x:auto;margin:.6rem 0 1.2rem}
table{border-collapse:collapse;font-size:.9rem;font-variant-numeric:tabular-nums;min-width:min(100%,24rem)}
th,td{padding:.35rem .8rem;text-align:right;border-bottom:1px solid var(--rule);white-space:nowrap}
th:first-child,td:first-child{text-align:left;padding-left:0}th{color:var(--soft);font-weight:500;font-size:.82rem}
tr.below td{color:var(--soft);font-style:italic}
.pairs{display:grid;grid-template-columns:repeat(auto-fill,minmax(8.6rem,1fr));gap:.8rem}
.pair{font-size:.78rem;color:var(--soft);font-variant-numeric:tabular-nums}.pair div{display:flex;gap:2px}
.pair img{width:calc(50% - 1px);aspect-ratio:1;border-radius:4px;display:block}
.pair span{display:flex;justify-content:space-around}.low{color:var(--c1);font-weight:600}
details{margin:1rem 0}summary{cursor:pointer;color:var(--accent)}
"""
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def page(title: str, subtitle: str, facts: Iterable[tuple[str, str]], sections: Iterable[str]) -> str:
    """The whole document. The policy in its head forbids the browser to fetch or run anything."""
    terms = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in facts)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body><main>"
        f'<h1>{escape(title)}</h1><p class="soft">{escape(subtitle)}</p><dl>{terms}</dl>'
        f"{''.join(sections)}</main></body></html>\n"
    )


def section(name: str, heading: str, *parts: str) -> str:
    return f'<section id="{name}"><h2>{escape(heading)}</h2>{"".join(parts)}</section>'


def paragraph(text: str, css: str = "soft") -> str:
    return f'<p class="{css}">{escape(text)}</p>'


def heading(text: str) -> str:
    """The heading of a part of a section."""
    return f"<h3>{escape(text)}</h3>"


def figures(*each: str) -> str:
    css = "grid three" if len(each) == 3 else "grid"
    return f'<div class="{css}">{"".join(each)}</div>'


def chart(figure: Figure, title: str, note: str = "", narrow: bool = False) -> str:
    """A matplotlib figure as inline SVG, in the page's colours and font.

    narrow: for three charts in a row. SVG ids are valid for the whole page, so each chart's get a prefix of their own.
    """
    svg = to_svg(figure, *(_NARROW if narrow else _WIDE))
    svg = re.sub(r"<style[^>]*>.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"#[0-9a-f]{6}\b", lambda colour: _THEME.get(colour[0], colour[0]), svg)
    svg = re.sub(r"font: (?:bold )?([\d.]+px) [^;\"]*", r"font-size: \1", svg)
    prefix = f"chart-{hashlib.sha256(f'{title}{svg}'.encode()).hexdigest()[:8]}"
    svg = re.sub(r'(\bid="|="#|url\(#)', rf"\g<1>{prefix}-", svg)
    svg = svg.replace("<svg ", f'<svg role="img" aria-label="{escape(title)}" ', 1)
    small = f"<small>{escape(note)}</small>" if note else ""
    return f"<figure><figcaption>{escape(title)}{small}</figcaption>{svg}</figure>"


def table(content: Table) -> str:
    """Rows of text; those below the line, such as the paper's, are set apart."""
    head = "".join(f"<th>{escape(text)}</th>" for text in content.headings)
    body = "".join(_row(cells, "") for cells in content.rows) + "".join(_row(cells, ' class="below"') for cells in content.below)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _row(cells: Sequence[str], css: str) -> str:
    return f"<tr{css}>" + "".join(f"<td>{escape(text)}</td>" for text in cells) + "</tr>"


def pair(original: np.ndarray, augmented: np.ndarray, u: Sequence[float], threshold: float | None) -> str:
    """Two faces, uint8 RGB, with the quality of each below it."""
    marks = ""
    for value in u:
        low = threshold is not None and value <= threshold
        word = "" if threshold is None else (" LQ" if low else " HQ")
        marks += f'<span class="{"low" if low else ""}">{value:.3f}{word}</span>'
    return f'<div class="pair"><div>{_image(original)}{_image(augmented)}</div><span>{marks}</span></div>'


def _image(rgb: np.ndarray) -> str:
    done, encoded = cv2.imencode(".jpg", cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 92])
    assert done, "OpenCV could not encode a JPEG"
    return f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(encoded.tobytes()).decode()}">'
