"""What a page is made of, and how that looks in HTML and in Markdown."""

from __future__ import annotations

import base64
import dataclasses
import html
import pathlib
import re
from collections.abc import Mapping, Sequence
from urllib.parse import quote

NOT_MEASURED = "not measured"


@dataclasses.dataclass(frozen=True)
class Heading:
    level: int
    text: str


@dataclasses.dataclass(frozen=True)
class Text:
    """A paragraph. Its kind is "answer", "unfinished" for an answer that is not final, "note", or none of these."""

    text: str
    kind: str = ""


@dataclasses.dataclass(frozen=True)
class List:
    """The answers on several runs: name -> sentence."""

    items: Mapping[str, Text]


@dataclasses.dataclass(frozen=True)
class Bar:
    """What the dense model has, or the pruned one: a text and, if it is measured, a length in [0, 1], linear in it."""

    name: str
    text: str
    length: float | None = None
    dense: bool = False


@dataclasses.dataclass(frozen=True)
class KeyFigure:
    """A figure that a reader wants first, beside that of the dense model.

    Attributes:
        title: What it is of.
        value: Of the pruned model.
        aside: What belongs to the value, such as how sure it is: "± 1.6"; "" for nothing.
        change: The same in comparison with the dense model.
        bars: The dense model and the pruned one, as far as they are measured.
        notes: What else there is to say.
    """

    title: str
    value: str
    aside: str = ""
    change: str = ""
    bars: Sequence[Bar] = ()
    notes: Sequence[str] = ()


@dataclasses.dataclass(frozen=True)
class KeyFigures:
    figures: Sequence[KeyFigure]


@dataclasses.dataclass(frozen=True)
class Table:
    """The first row is the header. Of a row whose first cell is in `marked`, all cells are emphasised.

    Its kind is "numbers", "facts", which may be longer, or "texts", which begin at the left.
    """

    rows: Sequence[Sequence[str]]
    marked: frozenset[str] = frozenset()
    kind: str = "numbers"


@dataclasses.dataclass(frozen=True)
class Picture:
    name: str
    caption: str
    svg: str


@dataclasses.dataclass(frozen=True)
class Columns:
    """Parts that stand side by side where there is room."""

    parts: Sequence[Sequence[Block]]


@dataclasses.dataclass(frozen=True)
class Details:
    """What is folded away until a reader asks for it, and open in print."""

    summary: str
    blocks: Sequence[Block]


Block = Heading | Text | List | KeyFigures | Table | Picture | Columns | Details


def pictures_in(blocks: Sequence[Block]) -> list[Picture]:
    """In the order of the page."""
    found = []
    for block in blocks:
        if isinstance(block, Picture):
            found.append(block)
        elif isinstance(block, Columns):
            found += [picture for part in block.parts for picture in pictures_in(part)]
        elif isinstance(block, Details):
            found += pictures_in(block.blocks)
    return found


def html_page(blocks: Sequence[Block]) -> str:
    title = next(block.text for block in blocks if isinstance(block, Heading))
    style = pathlib.Path(__file__).with_name("report.css").read_text(encoding="utf-8")
    body = "\n".join(map(html_of, blocks))
    return _PAGE.format(title=html.escape(title), style=style, body=body)


def html_of(block: Block) -> str:
    match block:
        case Heading():
            return f"<h{block.level}>{html.escape(block.text)}</h{block.level}>"
        case Text():
            kind = f' class="{block.kind}"' if block.kind else ""
            return f"<p{kind}>{html.escape(block.text)}</p>"
        case List():
            items = (f"<li><h2>{html.escape(name)}</h2>{html_of(text)}</li>" for name, text in block.items.items())
            return '<ul class="answers">\n' + "\n".join(items) + "\n</ul>"
        case KeyFigures():
            return '<div class="figures">\n' + "\n".join(map(_html_figure, block.figures)) + "\n</div>"
        case Picture():
            # Not as elements of the page, where the ids of two pictures would be the same.
            data = base64.b64encode(block.svg.encode()).decode()
            return f'<img alt="{html.escape(block.caption)}" src="data:image/svg+xml;base64,{data}">'
        case Columns():
            parts = ("\n".join(map(html_of, part)) for part in block.parts)
            return '<div class="columns">\n' + "\n".join(f"<section>{part}</section>" for part in parts) + "\n</div>"
        case Details():
            inner = "\n".join(map(html_of, block.blocks))
            return f"<details><summary>{html.escape(block.summary)}</summary>\n{inner}\n</details>"
        case Table():
            return _html_table(block)


def _html_figure(figure: KeyFigure) -> str:
    missing = " missing" if figure.value == NOT_MEASURED else ""
    aside = f' <span class="aside">{html.escape(figure.aside)}</span>' if figure.aside else ""
    lines = [f"<h2>{html.escape(figure.title)}</h2>", f'<p class="value">{html.escape(figure.value)}{aside}</p>']
    if figure.change:
        lines.append(f'<p class="change">{html.escape(figure.change)}</p>')
    for bar in figure.bars:
        drawn = ""
        if bar.length is not None:
            model = "dense" if bar.dense else "now"
            drawn = f'<div class="bar"><div class="{model}" style="width: {100 * bar.length:.2f}%"></div></div>'
        lines.append(f'<p class="of"><span>{bar.name}</span> <span>{html.escape(bar.text)}</span></p>{drawn}')
    lines += [f'<p class="note">{html.escape(note)}</p>' for note in figure.notes]
    return f'<section class="figure{missing}">\n' + "\n".join(lines) + "\n</section>"


def _html_table(table: Table) -> str:
    header, *rows = table.rows
    lines = []
    if any(header):
        names = (f'<th scope="col">{html.escape(cell)}</th>' if cell else "<td></td>" for cell in header)
        lines.append(f"<thead><tr>{''.join(names)}</tr></thead>")
    lines.append("<tbody>")
    for row in rows:
        mark = ' class="marked"' if row[0] in table.marked else ""
        cells = "".join(f"<td>{html.escape(cell)}</td>" for cell in row[1:])
        lines.append(f'<tr{mark}><th scope="row">{html.escape(row[0])}</th>{cells}</tr>')
    # With the keyboard, too, one can scroll what can take the focus.
    return (
        f'<div class="table" tabindex="0"><table class="{table.kind}">\n'
        + "\n".join(lines)
        + "\n</tbody></table></div>"
    )


def markdown_of(block: Block, folder: str) -> str:
    """A block as Markdown, its pictures in `folder`."""
    match block:
        case Heading():
            return f"{'#' * block.level} {_escaped(block.text)}"
        case Text():
            text = _escaped(block.text)
            return f"**{text}**" if block.kind in ("answer", "unfinished") else text
        case List():
            return "\n".join(f"- **{_escaped(name)}**: {_escaped(text.text)}" for name, text in block.items.items())
        case KeyFigures():
            return "\n".join(map(_markdown_figure, block.figures))
        case Picture():
            return f"![{_escaped(block.caption)}]({quote(folder)}/{block.name}.svg)"
        case Columns():
            return "\n\n".join(markdown_of(inner, folder) for part in block.parts for inner in part)
        case Details():
            inner = "\n\n".join(markdown_of(inner, folder) for inner in block.blocks)
            return f"<details><summary>{html.escape(block.summary)}</summary>\n\n{inner}\n\n</details>"
        case Table():
            return _markdown_table(block)


def _markdown_figure(figure: KeyFigure) -> str:
    value = f"**{figure.title}: {figure.value}**{figure.aside and ' '}{figure.aside}"
    dense = [f"{bar.name}: {bar.text}" for bar in figure.bars if bar.dense]
    said = "; ".join(filter(None, [value, figure.change, *dense]))
    return f"- {' '.join([f'{said}.', *figure.notes])}"


def _markdown_table(table: Table) -> str:
    header, *rows = table.rows
    lines = [list(map(_escaped, header)), ["---", *["---" if table.kind == "texts" else "---:"] * (len(header) - 1)]]
    for row in rows:
        cells = map(_escaped, row)
        lines.append([f"**{cell}**" if cell and row[0] in table.marked else cell for cell in cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _escaped(text: str) -> str:
    """A text that Markdown takes as it is, in one line."""
    return re.sub(r"([\\`*<\[\]|])", r"\\\1", " ".join(text.split()))


_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>
{style}</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>"""
