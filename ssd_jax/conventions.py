"""What a network was trained with that its parameters do not contain."""

from typing import NamedTuple


class Conventions(NamedTuple):
    """Settings that belong to the trained parameters; named as the fields of `config.ModelConfig`.

    Attributes:
      mean: RGB in 0..255 that is subtracted from images.
      padding: Padding of a MobileNet at stride 2, `"torch"` or `"tensorflow"`; empty for others.
      prior_sizes: Published sizes of the default boxes, `"voc"` or `"coco"`; empty: those that go
        with the number of classes.
      clip_priors: Whether default boxes are clamped to the image.
      clip_prior_sizes: Whether only their width and height are.
      unused_logits: Logits without a class, ascending from 1.
    """

    mean: tuple[float, ...] = ()
    padding: str = ""
    prior_sizes: str = ""
    clip_priors: bool = False
    clip_prior_sizes: bool = False
    unused_logits: tuple[int, ...] = ()
