"""Two source maps, conv4_3 and fc7, with 8664 boxes; the paper's table 3 has 9025.

python train.py --config configs/ablations/maps_2.py
"""

from configs.ablations import full
from ssd_jax import config


def change(cfg: config.Config) -> config.Config:
    cfg.model.source_maps = (0, 1, 1, 1)
    cfg.model.aspect_ratios = ((2.0,), (2.0,), (), ())
    return cfg


def get_config() -> config.Config:
    return change(full.get_config())
