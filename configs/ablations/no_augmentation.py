"""Only the picture and its mirror image, as Fast R-CNN is trained: table 2 of the paper.

python train.py --config configs/ablations/no_augmentation.py
"""

from configs.ablations import full
from ssd_jax import config


def change(cfg: config.Config) -> config.Config:
    cfg.data.augment = "flip"
    return cfg


def get_config() -> config.Config:
    return change(full.get_config())
