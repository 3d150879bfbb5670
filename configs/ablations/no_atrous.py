"""The whole VGG-16, with conv5_3 as a source map too: table 2 of the paper.

python train.py --config configs/ablations/no_atrous.py
"""

from configs.ablations import full
from ssd_jax import config


def change(cfg: config.Config) -> config.Config:
    cfg.model.atrous = False
    return cfg


def get_config() -> config.Config:
    return change(full.get_config())
