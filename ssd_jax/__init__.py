"""SSD, the Single Shot MultiBox Detector (Liu et al., 2016), as pure functions in JAX.

`load_detector` gives a trained detector; it is imported at first use, so that the modules of pure
functions do not wait for what only files and training need.
"""

from typing import TYPE_CHECKING, Any

from ssd_jax import version

if TYPE_CHECKING:
    from ssd_jax.load import load_detector

__version__ = version.VERSION
__all__ = ["__version__", "load_detector"]


def __getattr__(name: str) -> Any:
    if name != "load_detector":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from ssd_jax import load

    return load.load_detector


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
