"""SSD300 on VOC 2007 + 2012 trainval, tested on VOC 2007 test: the paper's recipe.

python train.py --config configs/ssd300.py
python train.py --config configs/ssd300.py --config.data.archives=FOLDER_OF_VOC_ARCHIVES
"""

from ssd_jax import config


def get_config() -> config.Config:
    # Every default is the paper's: section 3.1, and the authors' release for VOC07+12.
    return config.Config()
