"""Three source maps, to conv6_2, with 9864 boxes: table 3 of the paper.

python train.py --config configs/ablations/maps_3.py
"""

from configs.ablations import full
from ssd_jax import config


def change(cfg: config.Config) -> config.Config:
    cfg.model.source_maps = (0, 1, 1, 2, 2)
    cfg.model.aspect_ratios = (*((2.0,),) * 3, *((2.0, 3.0),) * 2)
    return cfg


def get_config() -> config.Config:
    return change(full.get_config())
