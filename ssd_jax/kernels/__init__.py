"""Versions of the paper's functions and of convolutions that are faster on some devices.

A kernel takes and returns arrays, and gives the same results as the plain form that it replaces.
`tests/test_kernels.py` and `tests/test_convolutions.py` hold it to that form, and the benchmark
that its module names shows what it saves. Which version a program contains is decided when it is
lowered for a platform (`jax.lax.platform_dependent`), so a program exported for several platforms
has the right one on each.
"""
