"""The paper's ablations: SSD300 on VOC07+12 with one thing left out, tables 2 and 3.

python train.py --config configs/ablations.py:no_ratio_3
"""

from collections.abc import Callable
from typing import Any

from configs import ssd300
from ssd_jax import config, errors

_TWO, _THREE = (2.0,), (2.0, 3.0)
_OF_MODEL: dict[str, dict[str, Any]] = {
    "full": {},  # nothing left out
    # Table 2: square boxes alone, no boxes of ratio 3 and 1/3, the whole VGG-16 with conv5_3.
    "no_ratio_2_and_3": {"aspect_ratios": ((),)},
    "no_ratio_3": {"aspect_ratios": (_TWO,)},
    "no_atrous": {"atrous": False},
    # Table 3: so many source maps, the first and fc7, conv6_2, ...; of maps_1, fc7 alone. maps_2
    # has 8664 boxes where the paper says 9025.
    "maps_5": {"source_maps": (0, 1, 2, 3, 4, 4)},
    "maps_4": {
        "source_maps": (0, 1, 2, 3, 3, 3),
        "aspect_ratios": (_TWO, _THREE, _THREE, _THREE, _THREE, _TWO),
    },
    "maps_3": {
        "source_maps": (0, 1, 1, 2, 2),
        "aspect_ratios": (_TWO, _TWO, _TWO, _THREE, _THREE),
    },
    "maps_2": {"source_maps": (0, 1, 1, 1), "aspect_ratios": (_TWO, _TWO, (), ())},
    "maps_1": {"source_maps": (1, 1, 1, 1), "aspect_ratios": (_THREE,)},
    "maps_6": {},
}


def _change(name: str) -> Callable[[config.Config], config.Config]:
    maps = name.removesuffix("_inside")

    def change(cfg: config.Config) -> config.Config:
        cfg.data.augment = "crop"  # expansion came later, in the paper's section 3.6
        for field, value in _OF_MODEL.get(maps, {}).items():
            setattr(cfg.model, field, value)
        if name == "no_augmentation":  # the image and its mirror image, as Fast R-CNN is trained
            cfg.data.augment = "flip"
        cfg.train.boundary_boxes = maps == name  # table 3 also trains without them
        return cfg

    return change


NAMES = (
    "no_augmentation",
    *(name for name in _OF_MODEL if name != "maps_6"),
    *(f"maps_{number}_inside" for number in range(6, 0, -1)),
)
CHANGES = {name: _change(name) for name in NAMES}


def get_config(name: str = "full") -> config.Config:
    if name not in CHANGES:
        raise errors.UserError(f"configs/ablations.py:{name}: give one of {', '.join(CHANGES)}")
    cfg = ssd300.get_config()
    # Liu et al. 2016, section 3.1: 40k steps at 1e-3, then 10k at 1e-4 and 10k at 1e-5.
    cfg.train.steps = 60_000
    cfg.train.milestones = (40_000, 50_000)
    return CHANGES[name](cfg)
