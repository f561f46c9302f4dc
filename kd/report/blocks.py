"""Holds a document as blocks and writes it as Markdown or as one HTML page.

Text is a small dialect of Markdown: `code` and **strong**, nothing else; every
other character stands for itself in both outputs. The page needs nothing from
elsewhere: its styles and figures are inside it.
"""

from __future__ import annotations

import dataclasses
import html
import re
from collections.abc import Mapping, Sequence

_SPAN = re.compile(r"(`[^`\n]+`|\*\*.+?\*\*)", re.DOTALL)


@dataclasses.dataclass(frozen=True)
class Heading:
  text: str
  level: int = 2


@dataclasses.dataclass(frozen=True)
class Text:
  text: str
  kind: str = "p"  # p | question | verdict | note


@dataclasses.dataclass(frozen=True)
class Bullets:
  items: Sequence[str]


@dataclasses.dataclass(frozen=True)
class Code:
  text: str
  language: str = ""


@dataclasses.dataclass(frozen=True)
class Cell:
  """Holds a table's cell: text, a colour chip, and whether it stands out."""

  text: str
  chip: str | None = None
  strong: bool = False


@dataclasses.dataclass(frozen=True)
class Table:
  """Holds a table; each row's first cell is its header.

  `left` numbers the columns set flush left; the rest hold figures.
  """

  caption: str
  columns: Sequence[str]
  rows: Sequence[Sequence[Cell | str]]
  left: Sequence[int] = (0,)


@dataclasses.dataclass(frozen=True)
class Picture:
  """Holds a figure: figures/NAME.png for Markdown, the SVG for the page."""

  name: str
  alt: str
  caption: str
  svg: str


@dataclasses.dataclass(frozen=True)
class Details:
  """Holds what the page folds away."""

  summary: str
  blocks: Sequence[Block]


Block = Heading | Text | Bullets | Code | Table | Picture | Details


def code(text: str) -> str:
  """Marks text as code, such as an arm's name."""
  return "`" + text.replace("`", "'").replace("\n", " ") + "`"


def to_markdown(blocks: Sequence[Block]) -> str:
  """Writes GitHub-flavoured Markdown."""
  return "\n\n".join(_markdown(b) for b in blocks) + "\n"


def to_html(
  title: str, blocks: Sequence[Block], theme: Mapping[str, str]
) -> str:
  """Writes one page that is also well-formed XML.

  Args:
    title: of the window.
    blocks: the document.
    theme: colours of the figures -> the CSS variables that replace them.

  Returns:
    The page, which makes no requests.
  """
  heads = [b for b in blocks if isinstance(b, Heading) and b.level == 2]
  links = "".join(
    f'<a href="#{_slug(h.text)}">{_html_text(h.text)}</a>' for h in heads
  )
  return (
    '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8"/>\n'
    '<meta name="viewport" content="width=device-width, initial-scale=1"/>\n'
    '<meta name="color-scheme" content="light dark"/>\n'
    f"<title>{html.escape(title)}</title>\n<style>{_CSS}</style>\n</head>\n"
    "<body>\n<main>\n"
    + f'<nav aria-label="Sections">{links}</nav>\n'
    + "\n".join(_html(b, theme) for b in blocks)
    + "\n</main>\n</body>\n</html>\n"
  )


def _markdown(block: Block) -> str:
  match block:
    case Heading(text, level):
      return "#" * level + " " + _markdown_text(text)
    case Text(text, kind):
      text = _markdown_text(text)
      quoted = kind in ("verdict", "question")
      lines = [f"> {line}".rstrip() for line in text.split("\n")]
      return "\n".join(lines) if quoted else text
    case Bullets(items):
      return "\n".join("- " + _markdown_text(i) for i in items)
    case Code(text, language):
      return f"```{language}\n{text}\n```"
    case Table():
      rule = [":--" if i in block.left else "--:" for i in _columns(block)]
      lines = [[_markdown_cell(Cell(c)) for c in block.columns], rule]
      lines += [[_markdown_cell(_cell(c)) for c in row] for row in block.rows]
      table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
      caption = _markdown_text(block.caption)
      return f"{caption}\n\n{table}" if caption else table
    case Picture(name, alt, caption, _):
      alt = alt.replace("[", "(").replace("]", ")")
      return f"![{alt}](figures/{name}.png)\n\n{_markdown_text(caption)}"
    case Details(summary, blocks):
      inner = "\n\n".join(_markdown(b) for b in blocks)
      return f"### {_markdown_text(summary)}\n\n{inner}"


def _markdown_text(text: str) -> str:
  def plain(s):
    s = re.sub(r"([\\*_#~]|\](?=\())", r"\\\1", s)
    return re.sub(r"<(?=[A-Za-z/!?])", "&lt;", s)

  def span(s):
    if s.startswith("**"):
      return "**" + _markdown_text(s[2:-2]) + "**"
    return s if s.startswith("`") else plain(s)

  return "".join(span(s) for s in _SPAN.split(text))


def _markdown_cell(cell: Cell) -> str:
  text = _markdown_text(cell.text).replace("|", "\\|").replace("\n", " ")
  return f"**{text}**" if cell.strong and text else text


def _html(block: Block, theme: Mapping[str, str]) -> str:
  match block:
    case Heading(text, level):
      anchor = f' id="{_slug(text)}"' if level == 2 else ""
      return f"<h{level}{anchor}>{_html_text(text)}</h{level}>"
    case Text(text, kind):
      paragraphs = "".join(
        f"<p>{_html_text(p)}</p>" for p in re.split(r"\n\s*\n", text)
      )
      return paragraphs if kind == "p" else _div(kind, paragraphs)
    case Bullets(items):
      return f"<ul>{''.join(f'<li>{_html_text(i)}</li>' for i in items)}</ul>"
    case Code(text, _):
      return f'<pre tabindex="0"><code>{html.escape(text)}</code></pre>'
    case Table():
      return _html_table(block, theme)
    case Picture():
      return (
        f'<figure id="figure-{block.name}"><div class="scroll" tabindex="0">'
        f"{_inline(block, theme)}</div>"
        f"<figcaption>{_html_text(block.caption)}</figcaption></figure>"
      )
    case Details(summary, blocks):
      inner = "\n".join(_html(b, theme) for b in blocks)
      summary = _html_text(summary)
      return f"<details><summary>{summary}</summary>{inner}</details>"


def _html_table(table: Table, theme: Mapping[str, str]) -> str:
  def tag(name, i, text, scope=""):
    scope = f' scope="{scope}"' if scope else ""
    side = ' class="left"' if i in table.left else ""
    return f"<{name}{scope}{side}>{text}</{name}>"

  head = "".join(
    tag("th", i, _html_text(c), "col") for i, c in enumerate(table.columns)
  )
  rows = []
  for row in table.rows:
    cells = [_html_cell(_cell(c), theme) for c in row]
    rest = (tag("td", i, c) for i, c in enumerate(cells[1:], 1))
    rows.append(f"<tr>{tag('th', 0, cells[0], 'row')}{''.join(rest)}</tr>")
  caption = _html_text(table.caption)
  name = html.escape(_plain(table.caption) or "table", quote=True)
  narrow = " narrow" if len(table.columns) <= 4 else ""
  return (
    f'<div class="scroll{narrow}" role="region" tabindex="0" '
    f'aria-label="{name}">'
    f"<table>{f'<caption>{caption}</caption>' if caption else ''}"
    f"<thead><tr>{head}</tr></thead>\n<tbody>"
    + "\n".join(rows)
    + "</tbody></table></div>"
  )


def _html_cell(cell: Cell, theme: Mapping[str, str]) -> str:
  text = _html_text(cell.text).replace(" = ", "&#160;=&#160;")
  text = f"<strong>{text}</strong>" if cell.strong and text else text
  if cell.chip is None:
    return text
  variable = theme.get(cell.chip)
  colour = f"var({variable})" if variable else cell.chip
  chip = f'<span class="chip" style="background: {colour}"></span>'
  return chip + text


def _html_text(text: str) -> str:
  def span(s):
    if s.startswith("`") and s.endswith("`") and len(s) > 2:
      return f"<code>{html.escape(s[1:-1])}</code>"
    if s.startswith("**") and s.endswith("**") and len(s) > 4:
      return f"<strong>{_html_text(s[2:-2])}</strong>"
    return html.escape(s, quote=False).replace(" %", "&#160;%")

  return "".join(span(s) for s in _SPAN.split(text))


def _inline(picture: Picture, theme: Mapping[str, str]) -> str:
  """Makes matplotlib's SVG a part of the page."""
  svg = picture.svg[picture.svg.index("<svg") :]
  svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
  svg = re.sub(r' xmlns(:\w+)?="[^"]*"', "", svg).replace("xlink:href", "href")
  # Figures share a page, so their ids must not meet.
  own = picture.name + "-"
  svg = re.sub(r'\bid="', f'id="{own}', svg)
  svg = svg.replace("url(#", f"url(#{own}").replace('href="#', f'href="#{own}')
  for colour, variable in theme.items():
    svg = svg.replace(colour, f"var({variable})")
  width = re.search(r'width="([\d.]+)pt"', svg)
  svg = re.sub(r' (width|height)="[\d.]+pt"', "", svg, count=2)
  points = float(width[1]) if width else 600.0
  label = html.escape(picture.alt, quote=True)
  # A point is 4/3 px; on a phone the figure scrolls before it is illegible.
  size = f"max-width: {points * 1.5:.0f}px; min-width: {points * 0.9:.0f}px"
  opening = f'<svg role="img" aria-label="{label}" style="{size}"'
  return svg.replace("<svg", opening, 1).strip()


def _div(kind: str, inner: str) -> str:
  return f'<div class="{kind}">{inner}</div>'


def _cell(cell: Cell | str) -> Cell:
  return cell if isinstance(cell, Cell) else Cell(cell)


def _columns(table: Table) -> range:
  return range(len(table.columns))


def _plain(text: str) -> str:
  return text.replace("`", "").replace("**", "")


def _slug(text: str) -> str:
  return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


_CSS = """
:root { --ink: #1f2530; --muted: #5d6573; --rule: #dde1e7; --paper: #ffffff;
  --page: #f5f6f8; --soft: #f0f3f7; --accent: #0072b2; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e9ee; --muted: #a0a8b4; --rule: #343b46; --paper: #1a1e25;
    --page: #12151a; --soft: #232932; --accent: #6bb8ea; } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; scroll-behavior: smooth; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.6 system-ui, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
main { max-width: 1280px; margin: 0 auto; padding: 2.5rem 1.25rem 5rem; }
h1 { font-size: 2.1rem; line-height: 1.2; margin: 0 0 .75rem;
  letter-spacing: -.015em; }
h2 { font-size: 1.3rem; line-height: 1.3; margin: 3rem 0 .75rem;
  letter-spacing: -.005em; }
h3 { font-size: 1.05rem; margin: 2rem 0 .5rem; }
p { margin: .5rem 0; max-width: 46rem; }
ul { max-width: 46rem; padding-left: 1.2rem; } li { margin: .35rem 0; }
nav { display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; font-size: .9rem;
  margin: 0 0 2rem; }
a { color: var(--accent); text-decoration: none; }
a:hover, a:focus-visible { text-decoration: underline; }
code { font: .88em/1.4 ui-monospace, "SF Mono", Menlo, Consolas, monospace; }
p code, li code, caption code, figcaption code { background: var(--soft);
  border-radius: 4px; padding: .1em .3em; }
.question { color: var(--muted); font-size: 1.05rem; }
.verdict { background: var(--paper); border: 1px solid var(--rule);
  border-left: 5px solid var(--accent); border-radius: 8px;
  padding: .9rem 1.4rem; margin: 1.4rem 0; font-size: 1.1rem; }
.verdict p { max-width: 54rem; } .verdict p + p { font-size: 1rem; }
.note { color: var(--muted); font-size: .92rem; }
.scroll { overflow-x: auto; background: var(--paper);
  border: 1px solid var(--rule); border-radius: 8px; margin: 1rem 0; }
.narrow { width: fit-content; min-width: min(26rem, 100%); max-width: 100%; }
.narrow th, .narrow td { padding-left: 1rem; padding-right: 1rem; }
table { border-collapse: collapse; width: 100%; font-size: .875rem;
  line-height: 1.45; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: var(--muted); font-size: .92rem;
  padding: .8rem 1rem .6rem; caption-side: top; }
th, td { padding: .5rem .5rem; text-align: right; white-space: nowrap;
  border-top: 1px solid var(--rule); font-weight: normal; }
th:first-child, td:first-child { padding-left: 1rem; }
th:last-child, td:last-child { padding-right: 1rem; }
thead th { font-weight: 600; font-size: .84rem; vertical-align: bottom;
  white-space: normal; color: var(--muted); }
.left { text-align: left; }
tbody th.left { white-space: normal; min-width: 9rem; }
th code { white-space: nowrap; }
td.left { white-space: normal; min-width: 10rem; max-width: 34rem;
  overflow-wrap: anywhere; }
tbody tr:hover { background: var(--soft); }
.chip { display: inline-block; width: .7em; height: .7em; border-radius: 2px;
  margin-right: .55em; }
figure { margin: 1.25rem 0 2.25rem; }
figure .scroll { margin: 0; padding: .75rem; }
figure svg { display: block; width: 100%; height: auto; margin: 0 auto; }
figcaption { color: var(--muted); font-size: .92rem; margin-top: .6rem;
  max-width: 46rem; }
pre { background: var(--soft); border: 1px solid var(--rule);
  border-radius: 8px; padding: .8rem 1rem; overflow-x: auto;
  font-size: .92rem; }
details { margin: 1.25rem 0; }
summary { cursor: pointer; font-weight: 600; color: var(--accent); }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
@media (max-width: 640px) { main { padding-top: 1.5rem; }
  h1 { font-size: 1.6rem; } .verdict { padding: .6rem 1rem; } }
@media print { body, .scroll, .verdict { background: none; }
  nav { display: none; } figure, table { break-inside: avoid; } }
"""
