"""The losses in Pallas for GPUs; `plans` says where they are taken."""

from kernels.gpu import plans

__all__ = ["plans"]
