r"""Continues a trained SSDLite with larger images (448 pixels), which finds smaller objects.

python train.py --config configs/ssdlite448_mobilenet_v2.py \
  --config.model.pretrained=runs/ssdlite320_mobilenet_v2
"""

from configs import ssdlite320_mobilenet_v2
from ssd_jax import config


def get_config() -> config.Config:
    cfg = ssdlite320_mobilenet_v2.get_config()
    cfg.model.image_size = 448
    cfg.data.canvas = 448
    cfg.train.steps = 900
    cfg.train.learning_rate = 1.4e-3
    cfg.train.warmup_steps = 50
    cfg.train.ema_decay = 0.99
    cfg.train.eval_every = 5_000
    return cfg
