"""SSD300 on COCO's train2017 (the paper's trainval35k), evaluated on val2017: the paper's recipe.

python train.py --config configs/ssd300_coco.py --config.model.pretrained=vgg16-imagenet
python train.py --config configs/ssd300_coco.py --config.data.archives=FOLDER_OF_COCO_ARCHIVES
python evaluate.py --workdir runs/ssd300_coco --config.data.eval_split=testdev2017
"""

from ssd_jax import config


def get_config() -> config.Config:
    cfg = config.Config()
    cfg.model.prior_sizes = "coco"  # smaller default boxes: section 3.4
    cfg.data.dataset = "coco"
    cfg.data.train_split = "train2017"
    cfg.data.eval_split = "val2017"
    cfg.data.canvas = 640  # COCO's largest side
    # Section 3.4's stages, as long as the authors' release with the expansion (3.6) has them.
    cfg.train.steps = 400_000
    cfg.train.milestones = (280_000, 360_000)
    cfg.train.eval_every = 20_000
    return cfg
