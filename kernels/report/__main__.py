"""`python -m kernels.report`: see `summary`."""

import sys

from kernels.report import summary

sys.exit(summary.main())
