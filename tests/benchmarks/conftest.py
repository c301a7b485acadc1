"""Triton's interpreter is chosen as for the tests of kernels, before triton is imported."""

import tests.kernels.conftest  # noqa: F401
