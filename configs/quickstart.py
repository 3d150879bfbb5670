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
    cfg.data.augment = "flip"  # the whole augmentation pays in longer runs
    cfg.train.steps = 500
    cfg.train.batch_size = 8
    # From scratch in a few minutes: Muon, and a learning rate that decays to 0.
    cfg.train.optimizer = "muon"
    cfg.train.learning_rate = 3e-3
    cfg.train.weight_decay = 0.0
    cfg.train.bias_lr_multiplier = 1.0
    cfg.train.schedule = "cosine"
    cfg.train.scratch_warmup_steps = 30
    cfg.train.cpu_devices = 2  # a fifth more images a second than one device on two cores
    cfg.train.eval_every = 1_000
    cfg.train.checkpoint_every = 100
    cfg.eval.batch_size = 8
    return cfg
