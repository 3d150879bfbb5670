"""No default boxes of ratio 3 and 1/3: table 2 of the paper.

python train.py --config configs/ablations/no_ratio_3.py
"""

from configs.ablations import full
from ssd_jax import config


def change(cfg: config.Config) -> config.Config:
    cfg.model.aspect_ratios = ((2.0,),)
    return cfg


def get_config() -> config.Config:
    return change(full.get_config())
