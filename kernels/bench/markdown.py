"""Tables that a command writes into a page, between marks."""

import pathlib


def table(header, rows) -> str:
  """Returns a Markdown table of strings."""
  lines = [header, ["---"] * len(header), *rows]
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
