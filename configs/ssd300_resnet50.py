"""SSD300 on ResNet-50 as NVIDIA and MLPerf build it, on VOC 2007 + 2012 trainval.

python train.py --config configs/ssd300_resnet50.py --config.model.pretrained=FILE
"""

from ssd_jax import config


def get_config() -> config.Config:
    cfg = config.Config()
    cfg.model.backbone = "resnet50"  # or resnet18, resnet34, resnet101
    return cfg
