"""SSD512 on VOC 2007 + 2012 trainval, tested on VOC 2007 test: the paper's recipe.

python train.py --config configs/ssd512.py --config.model.pretrained=vgg16-imagenet
"""

from ssd_jax import config


def get_config() -> config.Config:
    cfg = config.Config()
    cfg.model.image_size = 512  # seven maps, 24,564 default boxes: Liu et al. 2016, section 3.1
    cfg.data.canvas = 512
    return cfg
