"""What a training starts from, read as the loop reads it."""

from ssd_jax import config as config_lib
from ssd_jax import load


def source(path, *, cache_dir, backbone="vgg16", mirror=""):
    """`load.read_pretrained` of a config that starts from a file or a name."""
    config = config_lib.Config()
    config.model.pretrained, config.model.backbone = str(path), backbone
    config.data.cache_dir, config.data.mirror = str(cache_dir), mirror
    return load.read_pretrained(config)
