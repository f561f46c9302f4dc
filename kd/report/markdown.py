"""Writes Markdown: a document, a table, a section of a page."""

import pathlib
import re
from collections.abc import Sequence

from kd import files
from kd.errors import UserError
from kd.report import blocks
from kd.report.blocks import (
  SPAN,
  Block,
  Bullets,
  Cell,
  Code,
  Details,
  Heading,
  Picture,
  Table,
  Text,
  Tiles,
)


def write(document: Sequence[Block]) -> str:
  """Writes a document as GitHub-flavoured Markdown."""
  return blocks.visible("\n\n".join(map(_block, document)) + "\n")


def table(
  columns: Sequence[str],
  rows: Sequence[Sequence[str]],
  left: Sequence[int] | None = None,
) -> str:
  """Writes a table of Markdown cells; all columns are flush left, or `left`."""
  flush = range(len(columns)) if left is None else left
  rule = [":--" if i in flush else "--:" for i in range(len(columns))]
  lines = (" | ".join(line) for line in (columns, rule, *rows))
  return "\n".join(f"| {line} |" for line in lines)


def replace_section(path: str, name: str, body: str) -> None:
  """Replaces what stands between `<!-- name -->` and `<!-- /name -->`.

  Raises:
    UserError: the file or the marks are missing.
  """
  first, last = f"<!-- {name} -->", f"<!-- /{name} -->"
  try:
    text = pathlib.Path(path).read_text(encoding="utf-8")
  except OSError as error:
    raise UserError(str(error)) from error
  before, mark, rest = text.partition(first)
  _, end, after = rest.partition(last)
  if not (mark and end):
    raise UserError(f"{path}: expected the marks {first} and {last}")
  files.write_text(path, f"{before}{first}\n\n{body.strip()}\n\n{last}{after}")


def _block(block: Block) -> str:
  match block:
    case Heading(text, level):
      return "#" * level + " " + _text(text).replace("\n", " ")
    case Text(text, kind):
      text = _text(text)
      quoted = kind in ("verdict", "question")
      lines = [f"> {line}".rstrip() for line in text.split("\n")]
      return "\n".join(lines) if quoted else text
    case Bullets(items):
      return "\n".join("- " + _text(i) for i in items)
    case Tiles(items):
      lines = [f"{t.label}: **{t.value}** {t.note}".rstrip() for t in items]
      return "\n".join("- " + _text(line) for line in lines)
    case Code(text, language):
      ticks = max(map(len, re.findall("`+", text)), default=0)
      fence = "`" * max(3, ticks + 1)
      return f"{fence}{language}\n{text}\n{fence}"
    case Table():
      rows = [
        [_cell(blocks.cell(c), i in block.left) for i, c in enumerate(row)]
        for row in (block.columns, *block.rows)
      ]
      made = table(rows[0], rows[1:], block.left)
      caption = _text(block.caption)
      return f"{caption}\n\n{made}" if caption else made
    case Picture(name, alt, caption, _):
      alt = alt.replace("[", "(").replace("]", ")")
      return f"![{alt}](figures/{name}.png)\n\n{_text(caption)}"
    case Details(summary, inner):
      return "\n\n".join([f"### {_text(summary)}", *map(_block, inner)])


def _text(text: str) -> str:
  def plain(s):
    s = re.sub(r"([\\*_#~]|\](?=\())", r"\\\1", s)
    return re.sub(r"<(?=[A-Za-z/!?])", "&lt;", s)

  def span(s):
    if s.startswith("**"):
      return "**" + _text(s[2:-2]) + "**"
    return s if s.startswith("`") else plain(s)

  return "".join(span(s) for s in SPAN.split(text))


def _cell(cell: Cell, left: bool) -> str:
  text, note = (
    _text(s).replace("|", "\\|").replace("\n", " ")
    for s in (cell.text, cell.note)
  )
  text = f"**{text}**" if cell.strong and text else text
  return f"{text}{'<br>' if left else ' '}{note}" if note else text
