"""The maps of maps_4.py, without the boxes over the picture's edge: table 3 of the paper.

python train.py --config configs/ablations/maps_4_inside.py
"""

from configs.ablations import full, maps_4
from ssd_jax import config


def change(cfg: config.Config) -> config.Config:
    cfg = maps_4.change(cfg)
    cfg.train.boundary_boxes = False
    return cfg


def get_config() -> config.Config:
    return change(full.get_config())
