"""Compiled programs are kept between tests, and between runs of the tests."""

from kd.parallel import compilation_cache

# Before jax is imported, and for the processes that tests start, too.
compilation_cache.use(compilation_cache.default(), seconds=0.0)
