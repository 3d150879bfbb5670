"""One source map, fc7, with 8664 boxes: table 3 of the paper.

python train.py --config configs/ablations/maps_1.py
"""

from configs.ablations import full
from ssd_jax import config


def change(cfg: config.Config) -> config.Config:
    cfg.model.source_maps = (1, 1, 1, 1)
    cfg.model.aspect_ratios = ((2.0, 3.0),)
    return cfg


def get_config() -> config.Config:
    return change(full.get_config())
