r"""Fine-tunes a trained SSDLite on your own classes with a few dozen images, in minutes.

python train.py --config configs/finetune_ssdlite.py --workdir runs/mine \
  --config.model.pretrained=runs/ssdlite320_mobilenet_v2 --config.data.path=FOLDER
"""

from configs import ssdlite448_mobilenet_v2
from ssd_jax import config


def get_config() -> config.Config:
    # Trainable features: a higher mAP than at 320 pixels, on all splits (docs/results.md).
    cfg = ssdlite448_mobilenet_v2.get_config()
    cfg.data.dataset = "folder"  # or coco, or yolo
    cfg.data.train_split = "train"
    cfg.data.eval_split = "val"
    # Learning features too takes twice the time for a step, and was ahead on one split of three.
    cfg.train.freeze = ("mobilenet_v2",)
    cfg.train.steps = 250
    cfg.train.batch_size = 16
    cfg.train.learning_rate = 2.8e-3
    cfg.train.warmup_steps = 20
    cfg.train.ema_decay = 0.98  # an average over a thousand steps would still hold the beginning
    cfg.train.checkpoint_every = 50
    return cfg
