"""Where compiled programs are kept for other runs. Imports no jax."""

import hashlib
import os
import pathlib
import platform

from kd import files


def default() -> str:
  """Returns a folder beside the user's caches, of this kind of processor.

  A program that was compiled for another kind may not run.
  """
  try:
    lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    kind = [x for x in lines if x.startswith(("flags", "Features"))][:1]
  except OSError:
    kind = [platform.processor()]
  digest = hashlib.sha256("".join(kind).encode()).hexdigest()[:8]
  return os.path.join(files.cache(), f"{platform.machine()}-{digest}")


def use(folder: str, seconds: float = 0.3) -> None:
  """Keeps programs that take as long to compile; before jax is imported.

  The variables that jax reads itself go before what is given here.
  """
  if folder:
    folder = os.path.expanduser(folder)
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", folder)
    name = "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"
    os.environ.setdefault(name, str(seconds))
