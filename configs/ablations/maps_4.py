"""Four source maps, to conv7_2, with 8942 boxes: table 3 of the paper.

python train.py --config configs/ablations/maps_4.py
"""

from configs.ablations import full
from ssd_jax import config


def change(cfg: config.Config) -> config.Config:
    cfg.model.source_maps = (0, 1, 2, 3, 3, 3)
    cfg.model.aspect_ratios = ((2.0,), *((2.0, 3.0),) * 4, (2.0,))
    return cfg


def get_config() -> config.Config:
    return change(full.get_config())
