"""Tables that a command writes into a page, between marks."""

import pathlib
from collections.abc import Container, Iterable, Sequence


def table(
  header: Sequence, rows: Iterable[Sequence], left: Container[int] | None = None
) -> str:
  r"""Returns a Markdown table.

  >>> print(table(("loss", "ms"), [("KL(p || q)", 3)], left={0}))
  | loss | ms |
  | :-- | --: |
  | KL(p \|\| q) | 3 |

  Args:
    header: a title for each column.
    rows: cells, as str() has them; a bar is escaped, a line's end is a space.
    left: columns that are flush left, the others being flush right. None: no
      column says.
  """
  columns = range(len(header))
  if left is None:
    rule = ["---" for _ in columns]
  else:
    rule = [":--" if i in left else "--:" for i in columns]
  cell = lambda x: str(x).replace("|", "\\|").replace("\n", " ")
  cells = [list(map(cell, row)) for row in (header, *rows)]
  lines = [cells[0], rule, *cells[1:]]
  return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def replace_section(path: str, name: str, body: str) -> None:
  """Replaces what stands between `<!-- name -->` and `<!-- /name -->`.

  Raises:
    OSError: the file cannot be read or written.
    ValueError: it lacks the marks.
  """
  first, last = f"<!-- {name} -->", f"<!-- /{name} -->"
  text = pathlib.Path(path).read_text(encoding="utf-8")
  before, mark, rest = text.partition(first)
  _, end, after = rest.partition(last)
  if not (mark and end):
    raise ValueError(f"{path}: expected the marks {first} and {last}")
  text = f"{before}{first}\n\n{body.strip()}\n\n{last}{after}"
  pathlib.Path(path).write_text(text, encoding="utf-8")
