"""Self-contained HTML pages of text, tables and pictures.

A page has no scripts and loads no fonts, style sheets or other files; pictures are embedded. It can be mailed, printed
and archived as a single file.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.files import written_whole


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A picture of a page.

    Attributes:
        png: Content of the PNG file.
        title: Title above the picture.
        caption: Caption below the picture, also its alternative text; may be empty.
    """

    png: bytes
    title: str
    caption: str = ""

    def __post_init__(self) -> None:
        if not self.png.startswith(b"\x89PNG\r\n\x1a\n"):
            raise InputError(f"picture {self.title!r} is not a PNG file; it starts with {self.png[:8]!r}")


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table of a page.

    Attributes:
        caption: Caption above the table.
        rows: Cells as text; line breaks are kept.
        head: Headings of the columns; may be empty.
        highlighted: First cell of the row to highlight.
    """

    caption: str
    rows: Sequence[Sequence[str]]
    head: Sequence[str] = ()
    highlighted: str = ""


@dataclass(frozen=True)
class SideBySide:
    """Tables side by side, if they fit."""

    tables: Sequence[Table]


@dataclass(frozen=True)
class Note:
    """A paragraph of small print."""

    text: str


@dataclass(frozen=True)
class Commands:
    """Commands in a monospaced font."""

    text: str


@dataclass(frozen=True)
class Definitions:
    """Terms with their definitions."""

    meanings: Sequence[tuple[str, str]]


Part = str | Picture | Table | SideBySide | Note | Commands | Definitions


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of a page under its own heading.

    Attributes:
        heading: The heading.
        parts: The contents in order; a string is a paragraph.
    """

    heading: str
    parts: Sequence[Part] = ()


@dataclass(frozen=True, kw_only=True)
class Page:
    """The content of a page.

    Attributes:
        title: Title of the page.
        cautions: Sentences that are to be read before the result; mostly none.
        headline: The main result in one or two sentences; may be empty.
        introduction: Paragraphs below the headline.
        sections: The sections.
    """

    title: str
    cautions: Sequence[str] = ()
    headline: str = ""
    introduction: Sequence[str] = ()
    sections: Sequence[Section] = field(default_factory=tuple)


def write_page(page: Page, file: Path) -> None:
    """Write the page atomically."""
    with written_whole(file.parent) as scratch:
        (scratch / file.name).write_text(render_page(page), encoding="utf-8")


def render_page(page: Page) -> str:
    """The page as HTML. All text is escaped, so names of cases and experts may contain any character."""
    body = [
        f"<h1>{escape(page.title)}</h1>",
        *(f'<p class="caution"><strong>Caution:</strong> {escape(text)}</p>' for text in page.cautions),
        *([f'<p class="headline">{escape(page.headline)}</p>'] if page.headline else []),
        *(f"<p>{escape(text)}</p>" for text in page.introduction),
    ]
    for section in page.sections:
        body += [f"<h2>{escape(section.heading)}</h2>", *(_part(part) for part in section.parts)]
    return _FRAME.format(title=escape(page.title), style=_STYLE, body="\n".join(body))


def _part(part: Part) -> str:
    if isinstance(part, Picture):
        return _picture(part)
    if isinstance(part, Table):
        return f'<div class="tables">\n{_table(part)}\n</div>'
    if isinstance(part, SideBySide):
        return "\n".join(['<div class="tables">', *(_table(table) for table in part.tables), "</div>"])
    if isinstance(part, Note):
        return f'<p class="note">{escape(part.text)}</p>'
    if isinstance(part, Commands):
        return f"<pre>{escape(part.text)}</pre>"
    if isinstance(part, Definitions):
        lines = (f"<dt>{_wrapped(word)}</dt><dd>{escape(meaning)}</dd>" for word, meaning in part.meanings)
        return "\n".join(["<dl>", *lines, "</dl>"])
    return f"<p>{escape(part)}</p>"


def _wrapped(name: str) -> str:
    """A name as HTML that is wrapped at an underscore if it is long, as those of trainers are."""
    return escape(name).replace("_", "_<wbr>")


def _table(table: Table) -> str:
    head = ["<thead>", _row(table.head, "th"), "</thead>"] if table.head else []
    rows = [_row(row, "td", marked=bool(row) and row[0] == table.highlighted) for row in table.rows]
    caption = f"<caption>{escape(table.caption)}</caption>"
    return "\n".join([f"<table>{caption}", *head, "<tbody>", *rows, "</tbody></table>"])


def _row(cells: Sequence[str], tag: str, *, marked: bool = False) -> str:
    inner = "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells)
    return f'<tr class="marked">{inner}</tr>' if marked else f"<tr>{inner}</tr>"


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
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 1rem; font-weight: 650; overflow-wrap: anywhere; }
h2 { font-size: 1.3rem; margin: 2.6rem 0 .7rem; padding-top: 1rem; border-top: 1px solid #ddd; font-weight: 650; }
h3 { font-size: 1rem; margin: 0 0 .5rem; font-weight: 600; overflow-wrap: anywhere; }
p { max-width: 46rem; margin: 0 0 .8rem; }
p.headline { font-size: 1.2rem; line-height: 1.45; font-weight: 600; border-left: .3rem solid #222;
  padding-left: .9rem; margin: 0 0 1.1rem; }
p.caution { border: 2px solid #b3261e; background: #fdf1ef; padding: .6rem .9rem; margin: 0 0 1.1rem; }
p.caution strong { color: #b3261e; }
p.note { font-size: .88rem; color: #555; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .3rem 1.3rem; max-width: 56rem; margin: 0 0 1rem;
  font-size: .95rem; }
dt { font-weight: 600; max-width: 14rem; overflow-wrap: anywhere; }
dd { margin: 0; white-space: pre-line; }
.tables { display: flex; flex-wrap: wrap; gap: 1rem 3rem; align-items: flex-start; }
table { border-collapse: collapse; font-size: .92rem; margin: .4rem 0 1rem; line-height: 1.4; }
caption { text-align: left; color: #555; font-size: .88rem; padding-bottom: .4rem; }
th, td { text-align: right; padding: .34rem 0 .34rem 1.15rem; border-bottom: 1px solid #e4e4e4; vertical-align: top;
  font-variant-numeric: tabular-nums; white-space: pre-line; }
th { font-weight: 600; border-bottom-color: #999; vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; padding-left: 0; overflow-wrap: anywhere; }
tr.marked td { font-weight: 650; background: #eef4f8; }
figure { margin: 1.4rem 0 2.2rem; break-inside: avoid; }
img { display: block; max-width: 100%; height: auto; }
figcaption { color: #555; font-size: .88rem; margin-top: .4rem; max-width: 52rem; }
pre { background: #f6f6f4; border: 1px solid #e2e2de; padding: .8rem 1rem; white-space: pre-wrap;
  overflow-wrap: anywhere; font: 13.5px/1.5 Consolas, "DejaVu Sans Mono", Menlo, monospace; }
@page { size: A4; margin: 15mm; }
@media print { body { max-width: none; padding: 0; font-size: 10.5pt; } h2, h3, caption, h2 + p { break-after: avoid; }
  h2 { margin-top: 1.6rem; } table { font-size: 8.5pt; } th, td { padding-left: .6rem; }
  .tables { display: block; } tr, thead, caption { break-inside: avoid; }
  thead, tbody tr:first-child { break-after: avoid; } tbody tr:last-child { break-before: avoid; }
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
