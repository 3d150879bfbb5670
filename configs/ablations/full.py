"""What the paper's ablations leave something out of: SSD300 on VOC07+12 without expansion.

python train.py --config configs/ablations/full.py
"""

from configs import ssd300
from ssd_jax import config


def change(cfg: config.Config) -> config.Config:
    cfg.data.augment = "crop"  # expansion came later, in the paper's section 3.6
    return cfg


def get_config() -> config.Config:
    cfg = ssd300.get_config()
    # Liu et al. 2016, section 3.1: 40k steps at 1e-3, then 10k at 1e-4 and 10k at 1e-5.
    cfg.train.steps = 60_000
    cfg.train.drops = (40_000, 50_000)
    return change(cfg)
