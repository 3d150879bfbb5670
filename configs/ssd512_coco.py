"""SSD512 on COCO's train2017 (the paper's trainval35k), evaluated on val2017: the paper's recipe.

python train.py --config configs/ssd512_coco.py --config.model.pretrained=vgg16-imagenet
python train.py --config configs/ssd512_coco.py --config.train.accumulate=4    # with less memory
"""

from configs import ssd300_coco
from ssd_jax import config


def get_config() -> config.Config:
    cfg = ssd300_coco.get_config()
    cfg.model.image_size = 512
    return cfg
