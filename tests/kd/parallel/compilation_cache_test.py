"""Compiled programs lie where a flag or JAX's own variable says."""

import os
import pathlib
import subprocess
import sys
import tempfile
from unittest import mock

from absl.testing import absltest

from kd.parallel import compilation_cache

FOLDER, SECONDS = (
  "JAX_COMPILATION_CACHE_DIR",
  "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS",
)
CODE = """
import sys
from kd.parallel import compilation_cache
compilation_cache.use(sys.argv[1], seconds=0.0)
import jax
jax.jit(lambda x: x + 1)(1.0)
"""


class UseTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.home = self.enterContext(tempfile.TemporaryDirectory())
    self.enterContext(mock.patch.dict(os.environ, HOME=self.home))
    for name in (FOLDER, SECONDS):
      os.environ.pop(name, None)

  def test_a_program_is_kept_at_home(self):
    command = [sys.executable, "-c", CODE, "~/kept"]
    subprocess.run(command, check=True)
    self.assertNotEmpty(os.listdir(pathlib.Path(self.home, "kept")))

  def test_the_variable_goes_before(self):
    os.environ[FOLDER] = "/theirs"
    compilation_cache.use("/ours")
    self.assertEqual(os.environ[FOLDER], "/theirs")

  def test_none(self):
    compilation_cache.use("")
    self.assertNotIn(FOLDER, os.environ)

  def test_the_usual_one_is_beside_other_caches(self):
    os.environ.pop("XDG_CACHE_HOME", None)
    usual = compilation_cache.default()
    self.assertStartsWith(usual, f"{self.home}/.cache/kd-jax/")


if __name__ == "__main__":
  absltest.main()
