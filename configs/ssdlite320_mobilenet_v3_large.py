"""SSDLite on MobileNetV3-Large at 320 pixels, VOC 2007 and 2012, from torchvision's of COCO.

python train.py --config configs/ssdlite320_mobilenet_v3_large.py
"""

from ssd_jax import config


def get_config() -> config.Config:
    cfg = config.Config()
    cfg.model.backbone = "mobilenet_v3_large"
    cfg.model.image_size = 320
    cfg.model.pretrained = "ssdlite320-coco"
    cfg.data.canvas = 320
    cfg.train.steps = 4_000
    cfg.train.batch_size = 32
    cfg.train.optimizer = "adam"
    cfg.train.learning_rate = 1e-3
    cfg.train.lr_multipliers = ("mobilenet_v3_large=0.1",)  # trained features, new heads
    cfg.train.bias_lr_multiplier = 1.0
    cfg.train.weight_decay = 1e-4
    cfg.train.clip_norm = 10.0
    cfg.train.ema_decay = 0.999
    cfg.train.schedule = "cosine"
    cfg.train.warmup_steps = 200
    # As torchvision's SSDLite detects.
    cfg.model.clip_prior_sizes = True
    cfg.eval.clip_before_nms = True
    cfg.eval.score_threshold = 0.001
    cfg.eval.iou_threshold = 0.55
    cfg.eval.top_k = 300
    cfg.eval.max_detections = 300
    return cfg
