"""One self-contained HTML page about a deferral system: plain words, the numbers, the pictures.

The page loads nothing: no scripts, no fonts, no style sheets, and every picture is inside it. It can be mailed, printed
and opened in ten years.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

from nnunetv2_deferral.files import written_whole
from nnunetv2_deferral.report.tables import deferral_rows, score_rows


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A picture of a page.

    Attributes:
        png: The PNG file's content.
        title: Shown above it.
        caption: Shown below it, and read out where pictures are not seen; may be empty.
    """

    png: bytes
    title: str
    caption: str = ""

    def __post_init__(self) -> None:
        if not self.png.startswith(b"\x89PNG\r\n\x1a\n"):
            raise ValueError(f"picture {self.title!r} is no PNG file, it starts with {self.png[:8]!r}")


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of a page under its own heading, in this order.

    Attributes:
        heading: Its heading.
        paragraphs: Plain text, one string a paragraph.
        commands: Shown as they are to be typed; may be empty.
        pictures: Below the text.
    """

    heading: str
    paragraphs: Sequence[str] = ()
    commands: str = ""
    pictures: Sequence[Picture] = ()


@dataclass(frozen=True, kw_only=True)
class Page:
    """What a page says.

    Attributes:
        title: Of the page.
        introduction: What was done, one string a paragraph; shown above the numbers.
        table: From :func:`nnunetv2_deferral.report.tables.result_table`.
        highlighted: The `who` of the row that stands out.
        notes: Small print below the numbers, one string a paragraph.
        sections: What follows.
    """

    title: str
    introduction: Sequence[str]
    table: Mapping[str, Any]
    highlighted: str = "system (model + experts asked)"
    notes: Sequence[str] = ()
    sections: Sequence[Section] = field(default_factory=tuple)


def write_page(page: Page, file: Path) -> None:
    """Write the page, whole or not at all."""
    with written_whole(file.parent) as scratch:
        (scratch / file.name).write_text(render_page(page), encoding="utf-8")


def render_page(page: Page) -> str:
    """The page as HTML. All text is escaped, so names of cases and experts may hold any character."""
    body = [
        f"<h1>{escape(page.title)}</h1>",
        *(f'<p class="lead">{escape(text)}</p>' for text in page.introduction),
        "<h2>The numbers</h2>",
        '<div class="tables">',
        _scores(page),
        _deferral(page),
        "</div>",
        *(f'<p class="note">{escape(text)}</p>' for text in page.notes),
        *(_section(section) for section in page.sections),
    ]
    return _FRAME.format(title=escape(page.title), style=_STYLE, body="\n".join(body))


def _scores(page: Page) -> str:
    head, *rows = score_rows(page.table)
    lines = ["<table><caption>Overlap with the reference, mean over the cases</caption>", _row(head, "th")]
    lines += [_row(row, "td", marked=row[0] == page.highlighted) for row in rows]
    return "\n".join([*lines, "</table>"])


def _deferral(page: Page) -> str:
    rows = [_row(row, "td") for row in deferral_rows(page.table)]
    return "\n".join(["<table><caption>What was deferred, and what came of it</caption>", *rows, "</table>"])


def _row(cells: Sequence[str], tag: str, *, marked: bool = False) -> str:
    inner = "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells)
    return f'<tr class="marked">{inner}</tr>' if marked else f"<tr>{inner}</tr>"


def _section(section: Section) -> str:
    parts = [f"<h2>{escape(section.heading)}</h2>", *(f"<p>{escape(text)}</p>" for text in section.paragraphs)]
    if section.commands:
        parts.append(f"<pre>{escape(section.commands)}</pre>")
    return "\n".join([*parts, *(_picture(picture) for picture in section.pictures)])


def _picture(picture: Picture) -> str:
    data = base64.b64encode(picture.png).decode("ascii")
    described = escape(picture.caption or picture.title, quote=True)
    caption = f"<figcaption>{escape(picture.caption)}</figcaption>" if picture.caption else ""
    return (
        f'<figure><h3>{escape(picture.title)}</h3><img alt="{described}" src="data:image/png;base64,{data}">'
        f"{caption}</figure>"
    )


_STYLE = """
:root { color-scheme: light; }
body { margin: 0 auto; max-width: 64rem; padding: 2.5rem 1.5rem 4rem; background: #fff; color: #222;
  font: 16px/1.55 "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 1rem; font-weight: 650; }
h2 { font-size: 1.3rem; margin: 2.6rem 0 .7rem; padding-top: 1rem; border-top: 1px solid #ddd; font-weight: 650; }
h3 { font-size: 1rem; margin: 0 0 .5rem; font-weight: 600; }
p { max-width: 46rem; margin: 0 0 .8rem; }
p.note { font-size: .88rem; color: #555; }
.tables { display: flex; flex-wrap: wrap; gap: 1rem 3rem; align-items: flex-start; }
table { border-collapse: collapse; font-size: .95rem; margin: .4rem 0 1rem; }
caption { text-align: left; color: #555; font-size: .88rem; padding-bottom: .4rem; }
th, td { text-align: right; padding: .34rem 0 .34rem 1.3rem; border-bottom: 1px solid #e4e4e4;
  font-variant-numeric: tabular-nums; }
th { font-weight: 600; border-bottom-color: #999; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
tr.marked td { font-weight: 650; background: #eef4f8; }
figure { margin: 1.4rem 0 2.2rem; break-inside: avoid; }
img { display: block; max-width: 100%; height: auto; }
figcaption { color: #555; font-size: .88rem; margin-top: .4rem; max-width: 46rem; }
pre { background: #f6f6f4; border: 1px solid #e2e2de; padding: .8rem 1rem; white-space: pre-wrap;
  font: 13.5px/1.5 Consolas, "DejaVu Sans Mono", Menlo, monospace; }
@media print { body { max-width: none; padding: 0; font-size: 11pt; } h2 { break-after: avoid; }
  tr.marked td { background: none; } }
"""

_FRAME = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
{body}
</body>
</html>
"""
