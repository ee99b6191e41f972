"""A table of text cells as Markdown, LaTeX, HTML or aligned columns."""

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

MARKDOWN = {"\\": r"\\", "|": r"\|", "*": r"\*", "`": r"\`", "<": "&lt;", "\n": " "}
LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "[": "{[}",  # after a row's end it would open an option
    "*": "{*}",
    "\n": " ",
    "±": r"$\pm$",
    "−": "$-$",
    "–": "--",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    "δ": r"$\delta$",
    "₁": "$_1$",
    "₂": "$_2$",
    "₃": "$_3$",
}
LAST_LETTER = "\u017f"  # pdflatex's standard fonts have the letters of Latin-1 and Extended-A
MARK = "*"  # of a bold cell in plain text


class Cell(NamedTuple):
    """One cell."""

    text: str
    bold: bool = False


@dataclass(frozen=True)
class Grid:
    """Column heads, and rows in groups with a rule between them where the form has rules."""

    head: tuple[str, ...]
    groups: tuple[tuple[tuple[Cell, ...], ...], ...]
    texts: int = 1
    """Columns of words at the left; numbers follow."""

    @property
    def rows(self) -> list[tuple[Cell, ...]]:
        """All rows without the groups."""
        return [row for group in self.groups for row in group]


def grid(head: Sequence[str], *groups: Sequence[Sequence[Cell]], texts: int = 1) -> Grid:
    """A grid of the groups that have rows."""
    kept = tuple(tuple(tuple(row) for row in group) for group in groups if group)
    assert all(len(row) == len(head) for group in kept for row in group)
    return Grid(tuple(head), kept, texts)


def markdown(table: Grid) -> list[str]:
    """The lines of a pipe table."""
    rule = ["---"] * table.texts + ["---:"] * (len(table.head) - table.texts)
    body = [[_strong(cell) for cell in row] for row in table.rows]
    head = [escape_markdown(name) for name in table.head]
    return [f"| {' | '.join(cells)} |" for cells in (head, rule, *body)]


def _strong(cell: Cell) -> str:
    text = escape_markdown(cell.text)
    return f"**{text}**" if cell.bold else text


def latex(table: Grid, *, caption: str, label: str) -> list[str]:
    """A float over all columns of the page, shrunk to its width; needs booktabs and graphicx."""
    columns = "l" * table.texts + "r" * (len(table.head) - table.texts)
    lines = [
        r"\begin{table*}[htbp]",
        r"\centering",
        rf"\caption{{{escape_latex(caption)}}}",
        rf"\label{{{label}}}",
        r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
        rf"\begin{{tabular}}{{@{{}}{columns}@{{}}}}",
        r"\toprule",
        " & ".join(map(escape_latex, table.head)) + r" \\",
    ]
    for group in table.groups:
        lines.append(r"\midrule")
        lines += [" & ".join(map(_textbf, row)) + r" \\" for row in group]
    return [*lines, r"\bottomrule", r"\end{tabular}}", r"\end{table*}"]


def _textbf(cell: Cell) -> str:
    text = escape_latex(cell.text)
    return rf"\textbf{{{text}}}" if cell.bold else text


def hypertext(table: Grid) -> list[str]:
    """The lines of an HTML table; a column of numbers has the class `n`."""
    lines = ["<table>", _row([Cell(name) for name in table.head], "th", texts=table.texts)]
    lines += [_row(row, "td", texts=table.texts) for row in table.rows]
    return [*lines, "</table>"]


def _row(row: Sequence[Cell], tag: str, *, texts: int) -> str:
    cells = []
    for at, cell in enumerate(row):
        text = html.escape(cell.text)
        kind = tag if at < texts else f'{tag} class="n"'
        cells.append(f"<{kind}>{f'<b>{text}</b>' if cell.bold else text}</{tag}>")
    return f"<tr>{''.join(cells)}</tr>"


def columns(table: Grid, *, width: int) -> list[str]:
    """Aligned plain text, the first column cut where a line would pass `width`; bold is marked."""
    lines, widths = _laid_out(table)
    widths[0] -= max(0, sum(widths) + len(widths) - 1 - width)
    return [_line(row, widths, texts=table.texts) for row in lines]


def folded(table: Grid, *, width: int) -> list[Grid]:
    """Grids no wider than `width` where they can be: the words with some of the numbers each."""
    widths = _laid_out(table)[1]
    words = list(range(table.texts))
    parts: list[list[int]] = [[]]
    for at in range(table.texts, len(table.head)):
        taken = [*words, *parts[-1], at]
        if parts[-1] and sum(widths[one] for one in taken) + len(taken) - 1 > width:
            parts.append([])
        parts[-1].append(at)
    return [_part(table, [*words, *part]) for part in parts]


def _part(table: Grid, kept: Sequence[int]) -> Grid:
    groups = tuple(tuple(tuple(row[at] for at in kept) for row in rows) for rows in table.groups)
    return Grid(tuple(table.head[at] for at in kept), groups, table.texts)


def _laid_out(table: Grid) -> tuple[list[list[str]], list[int]]:
    """The cells as they are printed, and the widths of the columns."""
    head = [Cell(name) for name in table.head]
    lines = [[_marked(cell) for cell in row] for row in (head, *table.rows)]
    return lines, [max(len(row[at]) for row in lines) for at in range(len(table.head))]


def _marked(cell: Cell) -> str:
    return cell.text + (MARK if cell.bold else " ")  # so that the digits stay below each other


def _line(row: Sequence[str], widths: Sequence[int], *, texts: int) -> str:
    """Words to the left, numbers to the right."""
    cells = [
        _cut(text, width).ljust(width) if at < texts else text.rjust(width)
        for at, (text, width) in enumerate(zip(row, widths, strict=True))
    ]
    return " ".join(cells).rstrip()


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: max(0, width - 2)] + ".."


def escape_markdown(text: str) -> str:
    """Text as the content of a table's cell or of a line."""
    return "".join(MARKDOWN.get(letter, letter) for letter in text)


def escape_latex(text: str) -> str:
    """Text that LaTeX prints as it is; a letter its fonts lack becomes a question mark."""
    return "".join(LATEX.get(c, c if c <= LAST_LETTER else "?") for c in text)
