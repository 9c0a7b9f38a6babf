"""What this library raises.

SpectralKernelsError
|-- ShapeError      (ValueError)    sizes, channels, groups that cannot work together
|-- DtypeError      (TypeError)     a dtype or device that an operation does not take
|-- RangeError      (ValueError)    a scalar outside its range, a name that does not exist
`-- Unsupported     (RuntimeError)  a legal call that the named implementation cannot serve here
"""

from __future__ import annotations


class SpectralKernelsError(Exception):
    """The base of every error that this library raises on purpose."""


class ShapeError(SpectralKernelsError, ValueError):
    """Sizes, channels or groups do not fit together."""


class DtypeError(SpectralKernelsError, TypeError):
    """A tensor has a dtype, or lies on a device, that the operation does not take."""


class RangeError(SpectralKernelsError, ValueError):
    """A scalar lies outside its range, or a name is not one of the known ones."""


class Unsupported(SpectralKernelsError, RuntimeError):
    """The named implementation cannot serve this call here; the message says why."""
