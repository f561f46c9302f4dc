"""The page of a 30-arm study, in a browser: quick, quiet, usable by all.

Skipped where there is no Chromium (KD_CHROMIUM may name one), and what axe-core
checks where that is not there: `npm install --no-save axe-core` in the root of
the repository, or KD_AXE.
"""

import pathlib
import tempfile

from absl.testing import absltest, parameterized

from kd.report import page
from tests.kd.report import browser, studies

LOOKS = parameterized.product(width=(1280, 390), dark=(False, True))
REQUESTS = ("Network.requestWillBeSent", "Network.webSocketCreated")
FAULTS = ("Runtime.exceptionThrown", "Log.entryAdded")


@absltest.skipUnless(browser.find(), "no Chromium on this machine")
class BrowserTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    temporary = tempfile.TemporaryDirectory()
    cls.addClassCleanup(temporary.cleanup)
    folder = studies.leave(
      pathlib.Path(temporary.name) / "study", *studies.compressed(30)
    )
    cls.page = page.write(folder)
    cls.browser = browser.Browser()
    cls.addClassCleanup(cls.browser.close)
    cls.browser.open(cls.page)  # the first start of a browser is its own

  def open(self, width=1280, dark=False):
    self.browser.look(width, 900, dark)
    return self.browser.open(self.page)

  def test_is_small(self):
    self.assertLessEqual(self.page.stat().st_size, 5e6)  # 1 MB

  @LOOKS
  def test_opens_at_once_without_errors_or_requests(self, width, dark):
    seconds = self.open(width, dark)
    self.assertLess(seconds, 2)  # 0.2 to 0.4 s when nothing else runs
    told = self.browser.events
    self.assertEmpty([e for e in told if e["method"] in FAULTS])
    said = [e for e in told if e["method"] == "Runtime.consoleAPICalled"]
    self.assertEmpty([e for e in said if e["params"]["type"] == "error"])
    asked = [e for e in told if e["method"] in REQUESTS]
    urls = [e["params"].get("request", {}).get("url", "") for e in asked]
    own = self.page.resolve().as_uri()
    self.assertIn(own, urls)
    self.assertEmpty([u for u in urls if not u.startswith((own, "data:"))])

  @LOOKS
  def test_scheme_and_width_are_the_readers(self, width, dark):
    self.open(width, dark)
    paper = self.browser.run("getComputedStyle(document.body).backgroundColor")
    levels = [int(x) for x in paper[4:-1].split(",")]
    self.assertEqual(sum(levels) < 3 * 128, dark)
    wide = self.browser.run("document.documentElement.scrollWidth")
    self.assertLessEqual(wide, width)  # what is wide scrolls in its own box
    if width == 390:
      spills = self.browser.run("""[...document.querySelectorAll(
        ".cards td, .cards td .note")].filter(x => x.scrollWidth >
        x.clientWidth + 1 && x.clientWidth).map(x => x.outerHTML)""")
      self.assertEmpty(spills[:3])  # no cell's text lies on another's

  @LOOKS
  def test_axe_finds_nothing_serious(self, width, dark):
    script = browser.axe()
    if script is None:
      self.skipTest("no axe-core: npm install --no-save axe-core, or KD_AXE")
    self.open(width, dark)
    self.browser.run(
      "document.querySelectorAll('details').forEach(d => { d.open = true; })"
    )
    self.browser.run(f"{script.read_text()}; 0")
    found = self.browser.run("""axe.run().then(done => ({
      passed: done.passes.length,
      violations: done.violations.map(v =>
        [v.impact, v.id, v.help, v.nodes.slice(0, 3).map(n => n.html)])}))""")
    self.assertGreater(found["passed"], 10)
    bad = [v for v in found["violations"] if v[0] in ("serious", "critical")]
    self.assertEmpty(bad)

  def column(self, i):
    return self.browser.run(
      "[...document.querySelector('table').tBodies[0].rows].map("
      f"row => Number(row.cells[{i}].dataset.value))"
    )

  def test_tables_are_sorted_by_the_keyboard(self):
    self.open()
    self.browser.run("document.querySelectorAll('thead button')[1].focus()")
    for key, up in (("Enter", False), (" ", True)):
      self.browser.press(key)
      found = self.column(1)
      self.assertLen(found, 30)
      self.assertEqual(found, sorted(found, reverse=not up))
    head = "document.querySelector('table').tHead.rows[0].cells[1]"
    told = self.browser.run(f"{head}.getAttribute('aria-sort')")
    self.assertEqual(told, "ascending")
    ring = "getComputedStyle(document.activeElement).outlineStyle"
    self.assertEqual(self.browser.run(ring), "solid")

  def test_cards_are_sorted_by_a_list(self):
    self.open(390)
    self.browser.run("""(() => {
      const list = document.querySelector(".order select");
      list.selectedIndex = 1;
      list.dispatchEvent(new Event("change"));
    })()""")
    found = self.column(1)
    self.assertEqual(found, sorted(found, reverse=True))
    shown = "getComputedStyle(document.querySelector('.order')).display"
    self.assertEqual(self.browser.run(shown), "block")

  def test_every_picture_has_words(self):
    self.open()
    words = self.browser.run(
      "[...document.querySelectorAll('main svg, main img')].map("
      "x => x.getAttribute('aria-label') || x.getAttribute('alt'))"
    )
    self.assertGreater(len(words), 8)
    self.assertTrue(all(words))


if __name__ == "__main__":
  absltest.main()
