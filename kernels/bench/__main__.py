"""`python -m kernels.bench`: see `timing`."""

from kernels.bench import timing

timing.main()
