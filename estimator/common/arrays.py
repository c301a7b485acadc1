"""The array type, and the factor between logarithms."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
LN10 = float(np.log(10))
