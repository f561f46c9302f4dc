"""Rooms stand in an order, and import only what stands above them."""

import ast
import pathlib

from absl.testing import absltest

ROOT = pathlib.Path(__file__).resolve().parents[1]
ORDER = (
  *(
    "errors",
    "files",
    "interrupts",
    "lines",
    "config",
    "parallel",
    "divergences",
    "ranking",
  ),
  *("models", "compress", "datasets", "data", "signals", "objectives"),
  *("metrics", "train", "teachers", "evaluate", "report", "study", "bench"),
)


def imported(path: pathlib.Path) -> set[str]:
  """Returns the rooms of kd that a module imports, wherever it does."""
  found = set()
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.ImportFrom) and node.module:
      names = [f"{node.module}.{alias.name}" for alias in node.names]
    elif isinstance(node, ast.Import):
      names = [alias.name for alias in node.names]
    else:
      continue
    found |= {n.split(".")[1] for n in names if n.startswith("kd.")}
  return found


class LayoutTest(absltest.TestCase):
  def test_rooms_import_rooms_above(self):
    for path in (ROOT / "kd").rglob("*.py"):
      room = path.relative_to(ROOT / "kd").parts[0].removesuffix(".py")
      if room == "__init__":
        continue
      self.assertIn(room, ORDER, path)
      above = set(ORDER[: ORDER.index(room) + 1])
      self.assertLessEqual(imported(path), above, path)

  def test_product_imports_no_tools(self):
    for path in (ROOT / "kernels").rglob("*.py"):
      text = path.read_text()
      self.assertNotRegex(text, r"(?m)^ *(from|import) kd\b", path)
      if path.relative_to(ROOT / "kernels").parts[0] not in ("bench", "report"):
        tools = r"(?m)^ *(from|import) kernels(\.| import )(bench|report)\b"
        self.assertNotRegex(text, tools, path)

  def test_few_modules_are_flat_and_none_is_long(self):
    self.assertLessEqual(len(list((ROOT / "kd").glob("*.py"))), 8)
    for package in ("kd", "kernels"):
      for path in (ROOT / package).rglob("*.py"):
        self.assertLessEqual(len(path.read_text().splitlines()), 400, path)


if __name__ == "__main__":
  absltest.main()
