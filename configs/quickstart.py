"""SSD300 at a quarter of the width on the built-in dataset: minutes on two CPU cores.

python train.py --config configs/quickstart.py
"""

from ssd_jax import config


def get_config() -> config.Config:
    cfg = config.Config()
    cfg.model.width = 0.25
    cfg.data.dataset = "synthetic"
    cfg.data.train_split = "train"
    cfg.data.eval_split = "test"
    cfg.data.canvas = 320
    cfg.train.steps = 560
    cfg.train.batch_size = 8
    # From fresh parameters in a few minutes: Adam, and a rate that falls to 0.
    cfg.train.optimizer = "adam"
    cfg.train.learning_rate = 1e-3
    cfg.train.bias_rate = 1.0
    cfg.train.schedule = "cosine"
    cfg.train.warmup_steps = 50
    cfg.train.eval_every = 1_000
    cfg.train.checkpoint_every = 100
    cfg.eval.batch_size = 8
    return cfg
