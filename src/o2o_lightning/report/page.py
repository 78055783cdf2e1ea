"""One page in three writings: Markdown, HTML with its pictures inside, and tables for LaTeX."""

import base64
import html
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; margin: 1rem 0; font-size: 0.9rem; display: block; overflow-x: auto }
th, td { padding: 0.3rem 0.8rem; border-bottom: 1px solid #ddd; text-align: right; white-space: nowrap }
th:first-child, td:first-child { text-align: left }
img { max-width: 100% }
"""
# how TeX writes what its text has otherwise
TEX = {
    "\\": r"\textbackslash{}", "π_off": r"$\pi_\mathrm{off}$", "π_on": r"$\pi_\mathrm{on}$", "–": "--", "−": "$-$",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"}, "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
}  # fmt: skip


@dataclass(frozen=True)
class Heading:
    """A heading of a level, 1 the page's."""

    text: str
    level: int = 2


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str


@dataclass(frozen=True)
class Bullets:
    """A list."""

    lines: Sequence[str]


@dataclass(frozen=True)
class Table:
    """Cells as text, the first column the rows' names."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Picture:
    """A PNG, or a film as GIF, beside the page."""

    file: Path
    text: str


Block = Heading | Text | Bullets | Table | Picture


def markdown(blocks: Sequence[Block]) -> str:
    """The page in Markdown; pictures are files beside it."""
    return "\n\n".join(_markdown(block) for block in blocks) + "\n"


def _markdown(block: Block) -> str:
    match block:
        case Heading(text, level):
            return f"{'#' * level} {text}"
        case Text(text):
            return text
        case Bullets(lines):
            return "\n".join(f"- {line}" for line in lines)
        case Picture(file, text):
            return f"![{text}]({file.name})"
        case Table(columns, rows):
            rule = ["---", *["---:"] * (len(columns) - 1)]
            cells = [[cell.replace("|", r"\|") for cell in row] for row in (columns, rule, *rows)]
            return "\n".join(f"| {' | '.join(row)} |" for row in cells)


def page(blocks: Sequence[Block], title: str) -> str:
    """The page in HTML, one file that needs no other."""
    head = f'<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>'
    return f"{head}<style>{STYLE}</style>\n" + "\n".join(_html(block) for block in blocks) + "\n</html>\n"


def _html(block: Block) -> str:
    match block:
        case Heading(text, level):
            return f"<h{level}>{html.escape(text)}</h{level}>"
        case Text(text):
            return f"<p>{html.escape(text)}</p>"
        case Bullets(lines):
            return "<ul>" + "".join(f"<li>{html.escape(line)}</li>" for line in lines) + "</ul>"
        case Picture(file, text):
            data = base64.b64encode(file.read_bytes()).decode()
            return f'<p><img alt="{html.escape(text)}" src="data:image/{file.suffix[1:]};base64,{data}"></p>'
        case Table(columns, rows):
            lines = [_line("th", columns), *(_line("td", row) for row in rows)]
            return f"<table>{''.join(lines)}</table>"


def _line(tag: str, cells: Sequence[str]) -> str:
    return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"


def latex(table: Table) -> str:
    """A ``tabular`` for the package booktabs."""
    lines = [" & ".join(map(_tex, row)) + r" \\" for row in (table.columns, *table.rows)]
    body = "\n".join([lines[0], r"\midrule", *lines[1:]])
    form = "l" + "r" * (len(table.columns) - 1)
    return f"\\begin{{tabular}}{{{form}}}\n\\toprule\n{body}\n\\bottomrule\n\\end{{tabular}}\n"


def _tex(text: str) -> str:
    return re.sub("|".join(map(re.escape, TEX)), lambda found: TEX[found[0]], text)


def duration(seconds: float) -> str:
    """``2 h 05 min``, or ``3 min 20 s`` of less than an hour."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"
