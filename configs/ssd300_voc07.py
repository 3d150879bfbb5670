"""SSD300 on VOC 2007 trainval alone, tested on VOC 2007 test.

python train.py --config configs/ssd300_voc07.py
"""

from ssd_jax import config


def get_config() -> config.Config:
    cfg = config.Config()
    cfg.data.train_split = "2007/trainval"
    # Liu et al. 2016, section 3.1: 40k steps at 1e-3 and 10k at 1e-4 on VOC07 trainval in their
    # first version; with the release's third stage the learning rate drops again for the last 10k.
    cfg.train.steps = 60_000
    cfg.train.milestones = (40_000, 50_000)
    return cfg
