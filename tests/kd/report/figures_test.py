"""Figures: looks, curves, and the room that names take."""

import itertools

import numpy as np
from absl.testing import absltest, parameterized
from matplotlib.backends.backend_agg import FigureCanvasAgg

from kd.report import curves, figures, style
from tests.kd.report.studies import long_names, synthetic


class FiguresTest(parameterized.TestCase):
  @parameterized.parameters(2, 9, 10, 40)
  def test_styles_tell_arms_apart(self, n):
    gains = {"hard": 0.0} | {f"a{i}": i / 1000 for i in range(1, n)}
    results, _, _ = synthetic(gains, seeds=2, classes=0, steps=20)
    look = style.styles(results)
    loud = [s for s in look.values() if not s.quiet]
    self.assertLen({(s.colour, s.dash, s.marker) for s in loud}, len(loud))
    self.assertLen(loud, n if n <= 9 else 8)
    self.assertEqual(look["hard"].colour, style.INK)

  def test_curves_are_thinned_not_changed(self):
    steps = np.arange(5000)
    values = np.tile(0.5 + steps / 1e4, (3, 1))
    values[1, 4000:] = np.nan
    x, mean, std = figures._thin(steps, values)
    self.assertLessEqual(len(x), 160)
    np.testing.assert_allclose(mean, 0.5 + x / 1e4)
    np.testing.assert_allclose(std, 0, atol=1e-12)

  def test_curves_without_values(self):
    empty = (np.arange(3), np.full((2, 3), np.nan))
    found = {"hard": dict.fromkeys(curves.KEYS, empty)}
    look = {"hard": style.Style(style.INK)}
    fig = figures.learning_curves(found, look, {"hard": {"0": 1}})
    self.assertIn("not recorded", style.to_svg(fig))


class RoomTest(parameterized.TestCase):
  """Long names take their own room: none of a panel's, none off the edge."""

  def drawn(self, gains, several):
    """Yields each figure with the inches that its panels need."""
    results, _, _ = synthetic(gains, seeds=3, omit=(3,))
    arms = results["arms"]
    if several:
      for entry in list(arms.values())[2:]:
        for m in entry["metrics"].values():
          m["versus_baseline"]["baseline"] = list(arms)[1]
        entry["baseline"] = list(arms)[1]
    steps = np.arange(0, 400, 20)
    curve = steps, np.tile(1 + 1 / (1 + steps), (3, 1))
    found = {a: dict.fromkeys(curves.KEYS, curve) for a in arms}
    look = style.styles(results)
    yield 2.1, figures.forest(results, look, ["accuracy", "nll", "ece"])
    yield 4.0, figures.recall(results, {a: [3] for a in arms})
    yield 3.2, figures.learning_curves(found, look, {})
    yield 4.0, figures.student_teacher(results, look)
    yield 1.2, figures.reliability(results, look)

  @parameterized.product(
    gains=(
      long_names(),
      long_names(5),
      long_names(4, 200),
      {"hard": 0.0, "W" * 60: 0.1, "soft": 0.2},
      {"a": 0.0, "b": 0.1},
    ),
    several=(False, True),
  )
  def test_panels_and_labels(self, gains, several):
    for least, fig in self.drawn(gains, several and len(gains) > 2):
      canvas = FigureCanvasAgg(fig)
      canvas.draw()
      renderer = canvas.get_renderer()
      whole = fig.bbox
      boxes = []
      for ax in fig.axes:
        if not ax.axison:
          continue
        if ax.get_label() != "<colorbar>":
          self.assertGreater(ax.bbox.width / fig.dpi, least)
          self.assertGreater(ax.bbox.height / fig.dpi, 0.6)
        boxes.append(ax.get_tightbbox(renderer))
      boxes += [x.get_window_extent(renderer) for x in fig.legends]
      for box in boxes:
        self.assertGreaterEqual(box.x0, whole.x0 - 1)
        self.assertGreaterEqual(box.y0, whole.y0 - 1)
        self.assertLessEqual(box.x1, whole.x1 + 1)
        self.assertLessEqual(box.y1, whole.y1 + 1)
      for legend in fig.legends:
        key = legend.get_window_extent(renderer)
        for ax in fig.axes:
          self.assertGreaterEqual(key.x0, ax.get_tightbbox(renderer).x1 - 1)
      names = [t for t in fig.axes[0].get_yticklabels() if t.get_text()]
      ends = [t.get_window_extent(renderer) for t in names]
      ends.sort(key=lambda box: box.y0)
      for below, above in itertools.pairwise(ends):
        self.assertLessEqual(below.y1, above.y0 + 1)
      titles = [ax.title.get_window_extent(renderer) for ax in fig.axes]
      titles = [(t.y0, t.x0, t.x1) for t in titles if t.width]
      for one, next_one in itertools.pairwise(sorted(titles)):
        if one[0] == next_one[0]:
          self.assertLessEqual(one[2], next_one[1])

  def test_fit(self):
    name = "soft[divergence=skew_kl,signal.temperature=4.5714]"
    lines = style.fit(name, 2.0).split("\n")
    self.assertEqual("".join(lines), name)
    self.assertGreater(len(lines), 1)
    self.assertEqual(style.fit("soft", 2.0), "soft")
    self.assertLen(style.fit("x" * 1000, 1.0).split("\n"), 5)
    width, _ = style.room(style.fit("W" * 70, 1.5).split("\n"))
    self.assertLessEqual(width, 1.5)


if __name__ == "__main__":
  absltest.main()
