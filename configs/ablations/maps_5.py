"""Five source maps, to conv8_2, which has conv9_2's scale too: 8764 boxes, table 3 of the paper.

python train.py --config configs/ablations/maps_5.py
"""

from configs.ablations import full
from ssd_jax import config


def change(cfg: config.Config) -> config.Config:
    cfg.model.source_maps = (0, 1, 2, 3, 4, 4)
    return cfg


def get_config() -> config.Config:
    return change(full.get_config())
