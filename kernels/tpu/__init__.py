"""The losses in Pallas for TPUs; `plans` says where they are taken."""

from kernels.tpu import plans

__all__ = ["plans"]
