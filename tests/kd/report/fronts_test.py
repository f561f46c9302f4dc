"""Fronts drawn: every name has its room."""

import itertools

from absl.testing import absltest, parameterized
from matplotlib.backends.backend_agg import FigureCanvasAgg

from kd.evaluate.pareto import Front
from kd.report import fronts, style
from kd.report.pareto import PANELS
from tests.kd.report.studies import long_names, measured, synthetic


class FrontsTest(parameterized.TestCase):
  @parameterized.parameters(({"a": 0.0, "b": 0.1},), (long_names(12),))
  def test_names_stand_beside_their_panel(self, gains):
    results, _, _ = synthetic(gains, seeds=3, steps=20)
    arms = results["arms"]
    measured(results, {a: 1e5 * (1 + i) for i, a in enumerate(arms)})
    made = [Front("accuracy", cost, tuple(arms), ()) for cost in PANELS]
    titles = {cost: cost for cost in PANELS}
    fig = fronts.figure(results, style.styles(results), made, titles)
    canvas = FigureCanvasAgg(fig)
    canvas.draw()
    renderer, keys = canvas.get_renderer(), []
    for ax in fig.axes:
      self.assertGreater(ax.bbox.width / fig.dpi, 4)
      self.assertGreater(ax.bbox.height / fig.dpi, 1.4)
      whole = ax.get_tightbbox(renderer)
      self.assertGreaterEqual(whole.x0, -1)
      self.assertLessEqual(whole.x1, fig.bbox.x1 + 1)
      key = ax.texts[-1].get_window_extent(renderer)
      self.assertGreater(key.x0, ax.bbox.x1)
      self.assertGreaterEqual(key.y0, -1)
      keys.append(key)
    for above, below in itertools.pairwise(keys):
      self.assertGreaterEqual(above.y0, below.y1)

  def test_numbers_are_read_on_their_colour(self):
    self.assertEqual(fronts._on("#e69f00"), "#000000")
    self.assertEqual(fronts._on("#0072b2"), "#ffffff")
    self.assertEqual(fronts._on(style.INK), style.PAPER)


if __name__ == "__main__":
  absltest.main()
