"""The network and its parts."""

from ssd_jax.models.ssd import SSD, Predictions

__all__ = ["SSD", "Predictions"]
