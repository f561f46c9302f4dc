"""Compiled programs are kept between tests, and between runs of the tests."""

import os
import signal

from kd.parallel import compilation_cache

# Before jax is imported, and for the processes that tests start, too. Programs
# of tests run for less time than they are compiled (experiments/LOG.md).
QUICK = "--xla_backend_optimization_level=1"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {QUICK}".strip()
compilation_cache.use(compilation_cache.default(), seconds=0.0)

# A job in the background ignores SIGINT, and so would what tests start of it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
  signal.signal(signal.SIGINT, signal.default_int_handler)
