"""Compiled programs are kept between tests, and between runs of the tests."""

import signal

from kd.parallel import compilation_cache

# Before jax is imported, and for the processes that tests start, too.
compilation_cache.use(compilation_cache.default(), seconds=0.0)

# A job in the background ignores SIGINT, and so would what tests start of it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
  signal.signal(signal.SIGINT, signal.default_int_handler)
