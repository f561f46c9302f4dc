"""Writes a document as one HTML page, which needs nothing from elsewhere."""

import pathlib
import re
from collections.abc import Mapping, Sequence

import jinja2
from markupsafe import Markup, escape

from kd.report import blocks
from kd.report.blocks import SPAN, Block, Heading, Picture

_FOLDER = pathlib.Path(__file__).parent


def write(
  title: str, document: Sequence[Block], theme: Mapping[str, str]
) -> str:
  """Writes a page that is also well-formed XML, whatever its texts hold.

  Args:
    title: of the window.
    document: the blocks.
    theme: colours of the figures -> the CSS variables that replace them.

  Returns:
    The page, which makes no requests.
  """
  room = jinja2.Environment(
    loader=jinja2.FileSystemLoader(_FOLDER),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=jinja2.StrictUndefined,
  )
  room.filters |= {
    "kind": lambda block: type(block).__name__,
    "cell": blocks.cell,
    "plain": blocks.plain,
    "inline": _inline,
    "slug": _slug,
    "paragraphs": lambda text: re.split(r"\n\s*\n", text),
    "colour": lambda chip: f"var({theme[chip]})" if chip in theme else chip,
    "svg": lambda picture: _svg(picture, theme),
  }
  page = room.get_template("page.html").render(
    title=title,
    css=Markup((_FOLDER / "page.css").read_text(encoding="utf-8")),
    sections=[b for b in document if isinstance(b, Heading) and b.level == 2],
    document=document,
  )
  return blocks.visible(page)


def _inline(text: str) -> Markup:
  """Writes the dialect of kd.report.blocks."""

  def span(s):
    if s.startswith("`") and s.endswith("`") and len(s) > 2:
      return Markup("<code>{}</code>").format(s[1:-1])
    if s.startswith("**") and s.endswith("**") and len(s) > 4:
      return Markup("<strong>{}</strong>").format(_inline(s[2:-2]))
    return escape(s.replace(" %", "\xa0%").replace(" = ", "\xa0=\xa0"))

  return Markup("").join(map(span, SPAN.split(text)))


def _svg(picture: Picture, theme: Mapping[str, str]) -> Markup:
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
  # A point is 4/3 px; on a phone the figure scrolls before it is illegible.
  size = f"max-width: {points * 1.5:.0f}px; min-width: {points * 0.9:.0f}px"
  opening = Markup('<svg role="img" aria-label="{}" style="{}"').format(
    picture.alt, size
  )
  return Markup(svg.replace("<svg", opening, 1).strip())


def _slug(text: str) -> str:
  return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
