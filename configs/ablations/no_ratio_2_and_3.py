"""Square default boxes alone: table 2 of the paper.

python train.py --config configs/ablations/no_ratio_2_and_3.py
"""

from configs.ablations import full
from ssd_jax import config


def change(cfg: config.Config) -> config.Config:
    cfg.model.aspect_ratios = ((),)
    return cfg


def get_config() -> config.Config:
    return change(full.get_config())
