"""Holds a document as blocks, which kd.report.markdown and .html write.

Text is a small dialect of Markdown: `code` and **strong**, nothing else; every
other character stands for itself in both outputs.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

SPAN = re.compile(r"(`[^`\n]+`|\*\*.+?\*\*)", re.DOTALL)

# Not tab and line feed. What XML cannot hold, and what changes the order or the
# look of other text; but the joiners of scripts and emoji.
_HIDDEN = re.compile(
  "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u061c\u200b\u200e\u200f\u2028-\u202e"
  "\u2060-\u206f\ufeff\ufff9-\ufffb\ufffe\uffff\ud800-\udfff"
  "\U000e0000-\U000e007f]"
)


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
  """Holds a table's cell.

  Attributes:
    text: the first line.
    note: what stands below it, muted.
    chip: the colour of a square before it, or None.
    strong: whether it stands out.
    value: what rows are sorted by; None is last.
    image: a PNG in base64 before it, on the page alone.
    alt: what the image shows.
  """

  text: str
  note: str = ""
  chip: str | None = None
  strong: bool = False
  value: float | None = None
  image: str = ""
  alt: str = ""


@dataclasses.dataclass(frozen=True)
class Table:
  """Holds a table; each row's first cell is its header.

  `left` numbers the columns set flush left; the rest hold figures. `cards`
  makes it sortable by its columns, and each row a card on a phone.
  """

  caption: str
  columns: Sequence[Cell | str]
  rows: Sequence[Sequence[Cell | str]]
  left: Sequence[int] = (0,)
  cards: bool = False


@dataclasses.dataclass(frozen=True)
class Tile:
  """Holds a number to be seen at a glance, what it is, and of what."""

  label: str
  value: str
  note: str = ""


@dataclasses.dataclass(frozen=True)
class Tiles:
  """Holds tiles that stand in a row."""

  items: Sequence[Tile]


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


Block = Heading | Text | Bullets | Code | Table | Tiles | Picture | Details


def code(text: str) -> str:
  """Marks text as code, such as an arm's name."""
  return "`" + text.replace("`", "'").replace("\n", " ") + "`"


def cell(text: Cell | str) -> Cell:
  """Makes a cell of a text."""
  return text if isinstance(text, Cell) else Cell(text)


def plain(text: str) -> str:
  """Strips the marks of code and strong text."""
  return text.replace("`", "").replace("**", "")


def visible(text: str) -> str:
  """Writes control and direction-changing characters as escapes.

  What a model answered may hold any of them; as they are, they would break a
  page or show another text than it holds.

  >>> print(visible("a\\u202eb"))
  a\\u202eb
  """

  def escape(match):
    point = ord(match[0])
    return f"\\u{point:04x}" if point < 0x10000 else f"\\U{point:08x}"

  return _HIDDEN.sub(escape, text)
