"""What a report's sections are made from: what a study left, and its looks.

A section is a function of a Source that returns its blocks, none where the
study left nothing for it; kd.report.page lists them in order.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from kd.report import style
from kd.report.blocks import Block, Heading, Picture
from kd.report.curves import Curve


@dataclasses.dataclass(frozen=True)
class Source:
  """Holds what sections read.

  Attributes:
    results: what results.json holds.
    config: what config.json holds.
    folder: where figures are left.
    found: the learning curves (`curves.read`).
    faults: sentences on what is wrong with them.
  """

  results: Mapping[str, Any]
  config: Mapping[str, Any]
  folder: Path
  found: Mapping[str, Mapping[str, Curve]] = dataclasses.field(
    default_factory=dict
  )
  faults: Sequence[str] = ()

  @functools.cached_property
  def look(self) -> dict[str, style.Style]:
    """Arm -> its style, the same in every section."""
    return style.styles(self.results)

  @property
  def words(self) -> Mapping[str, str]:
    """Arm -> its objective in words, where the study wrote them."""
    return self.config.get("words") or {}

  @property
  def tree(self) -> Mapping[str, Any]:
    """The resolved config."""
    return self.config.get("config", self.config)

  def picture(
    self, name: str, fig: Figure | None, alt: str, caption: str
  ) -> list[Block]:
    """Leaves a figure as NAME.svg and NAME.png and returns its block; none of
    None, which is a figure whose data the study did not leave.

    Args:
      name: of the figure's files.
      fig: the figure.
      alt: what it shows, for those who do not see it.
      caption: below it.
    """
    if fig is None:
      return []
    svg = style.to_svg(fig)
    (self.folder / f"{name}.svg").write_text(svg, encoding="utf-8")
    (self.folder / f"{name}.png").write_bytes(style.to_png(fig))
    return [Picture(name, alt, caption, svg)]


def below(blocks: Sequence[Block]) -> list[Block]:
  """Puts headings a level down, as parts of a section."""
  return [
    Heading(b.text, b.level + 1) if isinstance(b, Heading) else b
    for b in blocks
  ]


Section = Callable[[Source], Sequence[Block]]
