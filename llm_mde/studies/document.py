"""A report of headings, text, tables, pictures and commands, as Markdown and as one HTML page.

The page needs nothing beside itself: no script, no link out, pictures inside.
"""

import base64
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from string import Template

from PIL import Image

from llm_mde.studies.grid import Grid, escape_markdown, hypertext, markdown


@dataclass(frozen=True)
class Code:
    """A command, to be copied as it is."""

    text: str


@dataclass(frozen=True)
class Picture:
    """A PNG in the report's folder."""

    path: Path
    caption: str


Block = str | Grid | Code | Picture | list[str]
Sections = Mapping[str, Sequence[Block]]  # heading -> what stands below; an empty one is left out


def as_markdown(title: str, sections: Sections) -> str:
    """The report as Markdown; its pictures lie beside it."""
    lines = [f"# {escape_markdown(title)}"]
    for heading, blocks in sections.items():
        if blocks:
            lines += ["", f"## {escape_markdown(heading)}"]
        for block in blocks:
            lines += ["", *_markdown(block)]
    return "\n".join(lines) + "\n"


def _markdown(block: Block) -> Iterator[str]:
    match block:
        case str():
            yield escape_markdown(block)
        case Grid():
            yield from markdown(block)
        case Code():
            yield from ("```bash", block.text, "```")
        case Picture():
            yield f"![{escape_markdown(block.caption)}]({block.path.name})"
            yield from ("", escape_markdown(block.caption))
        case _:
            yield from (f"- {escape_markdown(item)}" for item in block)


def as_html(title: str, sections: Sections) -> str:
    """The report as one page. Everything in it is escaped."""
    parts = [
        f"<section><h2>{escape(heading)}</h2>{''.join(map(_html, blocks))}</section>"
        for heading, blocks in sections.items()
        if blocks
    ]
    return PAGE.substitute(title=escape(title), sections="\n".join(parts))


def _html(block: Block) -> str:
    match block:
        case str():
            return f"<p>{escape(block)}</p>"
        case Grid():
            return f'<div class="wide">{"".join(hypertext(block))}</div>'
        case Code():
            return f"<pre>{escape(block.text)}</pre>"
        case Picture():
            return _figure(block)
        case _:
            return f"<ul>{''.join(f'<li>{escape(item)}</li>' for item in block)}</ul>"


def _figure(picture: Picture) -> str:
    """The picture inside the page, as large as it was drawn."""
    data = picture.path.read_bytes()
    with Image.open(io.BytesIO(data)) as image:
        inches = image.width / image.info["dpi"][0]
    source = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    caption = escape(picture.caption)
    shown = f'<img src="{source}" alt="{caption}" style="width:{inches:.2f}in">'
    return f"<figure>{shown}<figcaption>{caption}</figcaption></figure>"


PAGE = Template("""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>$title</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><style>
:root { color-scheme: light dark; --box: #f4f6f9; --line: #dde2e9; --dim: #5c6675 }
@media (prefers-color-scheme: dark) { :root { --box: #1f262f; --line: #36404d; --dim: #98a3b3 } }
body { margin: auto; max-width: 72rem; padding: 1rem 1rem 4rem; font: 15px/1.5 sans-serif }
h1 { font-size: 1.5rem } h2 { font-size: 1.1rem; margin: 2.2rem 0 .6rem } p { max-width: 50rem }
.wide { overflow-x: auto } table { border-collapse: collapse; font-size: .85rem }
th, td { text-align: left; padding: .3rem .9rem .3rem 0; border-bottom: 1px solid var(--line);
  font-weight: normal; white-space: nowrap } th, figcaption { color: var(--dim) }
.n { text-align: right; font-variant-numeric: tabular-nums }
pre { background: var(--box); border-radius: .5rem; padding: .8rem; overflow-x: auto }
figure { margin: 1rem 0 } figcaption { font-size: .85rem; max-width: 50rem }
img { max-width: 100%; background: white }
</style></head>
<body><h1>$title</h1>
$sections
</body></html>
""")
