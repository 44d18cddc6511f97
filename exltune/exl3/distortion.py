"""How far a quantized tensor is off, by its bits alone."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

#: NMSE * 4^K of the codec on Gaussian tiles (DESIGN.md section 7); between and beyond them linear and constant.
_NMSE_BITS = (2.0, 3.0, 4.0, 5.0, 6.0, 8.0)
_NMSE_TIMES_4K = (1.09, 1.12, 1.14, 1.16, 1.21, 1.30)


def nmse(bits: float | Floats) -> Floats:
    """Normalised mean square error of a tensor quantized to a bit width."""
    widths = np.asarray(bits, dtype=np.float64)
    return np.asarray(np.interp(widths, _NMSE_BITS, _NMSE_TIMES_4K) * 4.0**-widths)
