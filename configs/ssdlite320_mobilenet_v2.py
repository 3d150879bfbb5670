"""SSDLite on MobileNetV2 at 320 pixels, VOC 2007 train alone, evaluated on its val.

python train.py --config configs/ssdlite320_mobilenet_v2.py --config.model.pretrained=FILE
"""

from ssd_jax import config


def get_config() -> config.Config:
    cfg = config.Config()
    cfg.model.backbone = "mobilenet_v2"
    cfg.model.image_size = 320
    cfg.model.clip_prior_sizes = True  # as torchvision's SSDLite
    # Its six scales, and boxes of 32 pixels on the finest map too: of VOC 2007's objects, 92 % have
    # a default box of IoU >= 0.5 where torchvision's alone cover 79 %.
    cfg.model.prior_scales = (0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.95)
    cfg.model.source_maps = (0, 0, 1, 2, 3, 4, 5)
    cfg.model.aspect_ratios = ((2.0, 3.0),)
    cfg.data.train_split = "2007/train"
    cfg.data.eval_split = "2007/val"
    cfg.data.canvas = 320
    cfg.train.steps = 4_500  # 58 times the 2,500 images
    cfg.train.optimizer = "muon"
    cfg.train.learning_rate = 2.8e-3
    # Folded BatchNorm leaves weights of very different sizes: at the full learning rate
    # the pretrained features are lost in a few steps. The early ones are general enough.
    cfg.train.lr_multipliers = ("mobilenet_v2=0.1",)
    cfg.train.freeze = ("mobilenet_v2/conv_stem", "mobilenet_v2/block[0-9]")
    cfg.train.bias_lr_multiplier = 1.0
    cfg.train.weight_decay = 1e-4
    cfg.train.clip_norm = 10.0
    cfg.train.ema_decay = 0.999
    cfg.train.cpu_devices = 2
    cfg.train.schedule = "cosine"
    cfg.train.warmup_steps = 200
    cfg.train.eval_every = 1_000
    cfg.train.checkpoint_every = 100
    return cfg
