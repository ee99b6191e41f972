"""The HTML of a pack's report: the page around it, and tables."""

from collections.abc import Sequence
from html import escape
from string import Template

PAGE = Template("""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Pack report: $title</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><style>
:root { color-scheme: light dark; --box: #f4f6f9; --line: #dde2e9; --dim: #5c6675; --bad: #b3261e }
@media (prefers-color-scheme: dark) {
  :root { --box: #1f262f; --line: #36404d; --dim: #98a3b3; --bad: #ff8a80 } }
body { margin: auto; max-width: 72rem; padding: 1rem 1rem 4rem; font: 15px/1.5 sans-serif }
h1 { font-size: 1.5rem } h2 { font-size: 1.1rem; margin: 2.2rem 0 .6rem }
.tiles, .sheet { display: grid; gap: .7rem }
.tiles { grid-template-columns: repeat(auto-fit, minmax(8rem, 1fr)) }
.tiles div { background: var(--box); border-radius: .5rem; padding: .6rem .8rem }
.tiles b { display: block; font-size: 1.3rem; color: CanvasText } .bad { color: var(--bad) }
.tiles div, th, .legend, figcaption { color: var(--dim) }
.wide { overflow-x: auto } table { border-collapse: collapse; font-size: .9rem }
th, td { text-align: left; vertical-align: top; padding: .3rem .9rem .3rem 0; min-width: 3rem;
  border-bottom: 1px solid var(--line); font-weight: normal }
th, td:first-child { white-space: nowrap } td:last-child:not(.n) { min-width: 9rem }
@media (max-width: 40rem) { td:first-child { white-space: normal; min-width: 5.5rem } }
.n { text-align: right; font-variant-numeric: tabular-nums }
html { overflow-wrap: break-word } summary { cursor: pointer; padding: .5rem 0 }
.sheet { grid-template-columns: repeat(auto-fill, minmax(17rem, 1fr)) }
figure { margin: 0 } img { width: 50%; vertical-align: top } .bar { height: .7rem }
.legend, figcaption { font-size: .8rem } .legend { max-width: 26rem }
.ticks { display: flex; justify-content: space-between }
.none { background: #9e9e9e; padding: 0 .5rem; margin-right: .4rem }
</style></head>
<body><h1>Pack report: $title</h1><div class="tiles">$tiles</div>$sections</body></html>
""")


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table; every cell is escaped, columns of numbers are aligned to the right."""
    names = [_cell("th", name, like) for name, like in zip(head, [*rows, head][0], strict=False)]
    body = [names, *([_cell("td", value, value) for value in row] for row in rows)]
    lines = "".join(f"<tr>{''.join(cells)}</tr>" for cells in body if cells)
    return f'<div class="wide"><table>{lines}</table></div>'


def _cell(tag: str, value: object, like: object) -> str:
    kind = ' class="n"' if isinstance(like, int) else ""
    return f"<{tag}{kind}>{f'{value:,}' if kind and tag == 'td' else escape(str(value))}</{tag}>"
