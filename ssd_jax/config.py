"""All settings and their defaults, each defined exactly once.

A file in `configs/` returns a `Config` from `get_config()`; the command line changes single fields:
`python train.py --config configs/ssd300.py --config.train.batch_size=8`. A config file is Python
code that its user trusts; the config saved with a trained network is data, see `config_files`.
"""

import dataclasses
import os
from typing import Any

from ssd_jax import cache, resampling


# With slots, setting an attribute that is no field is an error.
@dataclasses.dataclass(slots=True)
class ModelConfig:
    """The network."""

    # vgg16, vgg19, resnet18, 34, 50, 101; with SSDLite: mobilenet_v2, mobilenet_v3_large
    backbone: str = "vgg16"
    image_size: int = 300  # input height (and width) in pixels; from 512 on, SSD512's layout
    image_width: int = 0  # input width for non-square inputs; 0 means square
    # padding of a MobileNet at stride 2: torch (1, 1), tensorflow (0, 1) on even sides; empty: that
    # of the pretrained weights
    padding: str = ""
    width: float = 1.0  # multiplier of the channel counts
    dtype: str = "float32"  # of the computation: float32 or bfloat16; parameters are float32
    remat: bool = False  # recompute the backbone's activations in the backward pass to save memory
    atrous: bool = True  # for VGG; False: the whole network, with conv5_3 as a source map too
    # the number of the source map, from 0, for each scale of default boxes; empty: one scale a map
    source_maps: tuple[int, ...] = ()
    # ratios beside 1 for each scale, or one entry for all, such as ((2.0,),); empty: the paper's
    aspect_ratios: tuple[tuple[float, ...], ...] = ()
    prior_sizes: str = "voc"  # published sizes of the default boxes: voc or coco
    # side of each scale's box over the input's shorter side, ascending; empty: see prior_sizes
    prior_scales: tuple[float, ...] = ()
    clip_priors: bool = False  # clamp default boxes to the image (amdegroot, lufficc)
    clip_prior_sizes: bool = False  # clamp only their width and height (torchvision)
    unused_logits: tuple[int, ...] = ()  # logits without a class (COCO's unused ids): background
    pretrained: str = ""  # weights to start from: a file, or a name such as vgg16-imagenet
    shared_classes: bool = True  # keep the heads of classes that a pretrained detector shares
    mean: tuple[float, ...] = ()  # RGB to subtract; empty: that of pretrained, or 123, 117, 104


def _cache_dir() -> str:
    """Default of `cache_dir`, also for `load_detector` and scripts that take no config."""
    return cache.default()


def _mirror() -> str:
    """Default of `mirror`: the environment variable `SSD_JAX_MIRROR`."""
    return os.environ.get("SSD_JAX_MIRROR", "")


@dataclasses.dataclass(slots=True)
class DataConfig:
    """The training and evaluation data."""

    # voc, coco, synthetic (built in) or your own: folder (VOC layout), coco (JSON), yolo (text)
    dataset: str = "voc"
    # your own dataset: its folder, a COCO JSON or YOLO's data.yaml; empty: an official dataset
    path: str = ""
    archives: str = ""  # folder with the archives of VOC or COCO; empty: download them
    # downloads, prepared datasets and compiled programs; never read from a run's config
    cache_dir: str = dataclasses.field(default_factory=_cache_dir)
    # URL or folder with the weights of names such as ssd300-coco; empty: torchvision's
    mirror: str = dataclasses.field(default_factory=_mirror)
    # for voc YEAR/NAME; joined by +, sliced as in train[:80%]
    train_split: str = "2007/trainval+2012/trainval"
    eval_split: str = "2007/test"  # held-out split, in the same notation
    max_unreadable_fraction: float = 0.01  # of the training images, which are left out
    difficult: bool = True  # train on objects marked difficult, as the authors do
    augment: str = "ssd"  # ssd (all of the paper's), crop (no expansion) or flip (neither)
    channel_shuffle: bool = False  # with ssd: shuffle color channels (amdegroot, lufficc)
    interpolations: tuple[str, ...] = resampling.INTERPOLATIONS  # with ssd: one is drawn per image
    canvas: int = 500  # larger images are shrunk to this on the host; an equal width saves a copy
    threads: int = 4  # for reading and decoding, one batch each
    workers: int = 0  # decoding processes, each with `threads` threads; 0: none
    max_megapixels: float = 179.0  # larger images are refused before they are decoded
    memory_gib: float = 2.0  # splits whose files are no larger are kept in memory; 0: none


@dataclasses.dataclass(slots=True)
class TrainConfig:
    """The objective, the optimizer and the loop."""

    steps: int = 120_000  # updates of the parameters, one batch each
    batch_size: int = 32  # global, over all devices of all processes
    accumulate: int = 1  # parts in which a device computes its share of the batch, to save memory
    optimizer: str = "sgd"  # sgd (the paper's), adam or muon
    learning_rate: float = 1e-3  # the highest; the schedule lowers it
    base_batch_size: int = 0  # batch size that learning_rate is for, to scale it linearly; 0: off
    momentum: float = 0.9  # of sgd
    weight_decay: float = 5e-4  # of all parameters but biases; decoupled for adam and muon
    bias_lr_multiplier: float = 2.0  # of the learning rate for biases, which do not decay
    clip_norm: float = 0.0  # maximum global norm of the gradients; 0: no clipping
    ema_decay: float = 0.0  # of the exponential moving average of the weights, say 0.999; 0: none
    freeze: tuple[str, ...] = ()  # patterns of parameters that are not trained: vgg16/conv[123]_*
    lr_multipliers: tuple[str, ...] = ()  # of the learning rate by pattern: conf*=10
    schedule: str = "steps"  # steps or cosine
    milestones: tuple[int, ...] = (80_000, 100_000)  # where schedule = steps lowers learning_rate
    lr_decay_factor: float = 0.1  # multiplies the learning rate at each milestone
    warmup_steps: int = 0  # linear, from 0
    scratch_warmup_steps: int = 500  # minimum without model.pretrained, where 1e-3 diverges
    iou_threshold: float = 0.5  # minimum IoU at which a prior matches
    neg_pos_ratio: float = 3.0  # mined negatives per positive of an image
    loc_weight: float = 1.0  # weight of the smooth L1 loss: the paper's alpha
    boundary_boxes: bool = True  # train default boxes that cross the image's border
    cpu_devices: int = 0  # without accelerator: split the CPU into this many devices; 0: one
    parallel: str = "shard_map"  # shard_map or pmap: how the step is mapped over the devices
    log_every: int = 10  # steps between the rows of metrics.csv
    eval_every: int = 5_000  # steps between evaluations; the last step has one too
    checkpoint_every: int = 1_000  # steps between checkpoints; evaluations have one too
    keep_checkpoints: int = 2  # latest checkpoints to keep; the best is kept as well
    max_skipped: int = 10  # consecutive steps with a non-finite loss before the run ends; 0: any
    watchdog_minutes: float = 30.0  # a process without a step for this long ends; 0: never
    wandb: str = ""  # Weights & Biases project that the metrics are sent to; empty: none


@dataclasses.dataclass(slots=True)
class EvalConfig:
    """Post-processing and evaluation."""

    batch_size: int = 32  # images per batch
    score_threshold: float = 0.01  # boxes with no higher score are dropped before NMS
    iou_threshold: float = 0.45  # of NMS
    clip_before_nms: bool = False  # clip boxes to the image before NMS (torchvision), not after
    top_k: int = 400  # best boxes of each class that enter NMS
    max_detections: int = 200  # per image, over all classes
    tta_flip: bool = False  # test-time augmentation: also run on the mirrored image
    # test-time augmentation: shorter sides of the inputs in pixels; empty: the training size
    tta_sizes: tuple[int, ...] = ()
    max_images: int = 0  # evaluate only the first images of the split; 0: all
    ema: bool = True  # use the moving average of the weights if the run keeps one


@dataclasses.dataclass(slots=True)
class Config:
    """All settings of a run."""

    seed: int = 0  # of the initialization, the order of the images and their augmentation
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    eval: EvalConfig = dataclasses.field(default_factory=EvalConfig)


LOCAL: dict[str, tuple[str, ...]] = {
    "data": ("cache_dir", "mirror", "max_megapixels"),
    "train": ("wandb",),
}
"""Fields that belong to this machine: where it writes, what it runs, contacts and may allocate.

XLA's compiled programs in `cache_dir` are native code. These fields come from the command line, the
config file it names, the environment or the defaults, never from a saved config.
"""

CHANGEABLE = ("model.dtype", "model.pretrained", "model.shared_classes")
"""Fields of `model` that may change when a run resumes; the others define the network."""

# Fields that may change when a run resumes, because they do not change the trained parameters.
_FREE: dict[str, tuple[str, ...]] = {
    "model": ("remat",),
    "data": (
        "archives",
        "cache_dir",
        "mirror",
        "threads",
        "workers",
        "memory_gib",
        "max_unreadable_fraction",
        "max_megapixels",
    ),
    "train": (
        "steps",
        "accumulate",
        "cpu_devices",
        "parallel",
        "log_every",
        "eval_every",
        "checkpoint_every",
        "keep_checkpoints",
        "max_skipped",
        "watchdog_minutes",
        "wandb",
    ),
}


def differences(there: Config, here: Config) -> dict[str, str]:
    """Differences between two configs that change the training: dotted name to both values."""
    found = {"seed": _both(there.seed, here.seed)} if there.seed != here.seed else {}
    for part in ("model", "data", "train"):
        free = _FREE.get(part, ())
        if part == "train" and here.train.schedule == "cosine":
            free = tuple(name for name in free if name != "steps")  # its decay depends on the end
        theirs = dataclasses.asdict(getattr(there, part))
        for name, ours in dataclasses.asdict(getattr(here, part)).items():
            if name not in free and theirs[name] != ours:
                found[f"{part}.{name}"] = _both(theirs[name], ours)
    return found


def _both(there: Any, here: Any) -> str:
    return f"{there!r} in the run, {here!r} in the config"
