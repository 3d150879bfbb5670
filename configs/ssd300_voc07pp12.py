"""SSD300 on VOC 07++12 (2007 trainval and test, 2012 trainval), for the server of VOC 2012 test.

python train.py --config configs/ssd300_voc07pp12.py --config.model.pretrained=vgg16-imagenet
python evaluate.py --workdir runs/ssd300_voc07pp12 --config.data.eval_split=2012/test

The second writes results for the evaluation server; VOC2012test.tar has to be in
--config.data.archives if the mirror does not have it.
"""

from ssd_jax import config


def get_config() -> config.Config:
    cfg = config.Config()
    cfg.data.train_split = "2007/trainval+2007/test+2012/trainval"
    # No annotated VOC image is held out: these are trained on and only show that training works.
    cfg.data.eval_split = "2007/test"
    # Liu et al. 2016, section 3.3: 60k steps at 1e-3 and 20k at 1e-4; with the expansion, section
    # 3.6 doubles both.
    cfg.train.steps = 160_000
    cfg.train.milestones = (120_000,)
    return cfg
