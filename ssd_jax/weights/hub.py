"""Published weights by name, with their URLs and checksums."""

from pathlib import Path
from typing import NamedTuple

from ssd_jax import cache, download, errors

_MIRROR = "config.data.mirror (SSD_JAX_MIRROR)"

_TORCHVISION = "https://download.pytorch.org/models/"


class Published(NamedTuple):
    """A file.

    Attributes:
      base: Address of its folder.
      filename: Its name there.
      sha256: The beginning of its SHA-256, which torchvision's names end in.
      mib: Maximum size in MiB: torchvision's figure, rounded up.
    """

    base: str
    filename: str
    sha256: str
    mib: int


NAMES = {
    # Of a VGG-16 that classifies ImageNet: fc6 and fc7 too.
    "vgg16-imagenet": Published(_TORCHVISION, "vgg16-397923af.pth", "397923af", 528),
    # The convolutions that the authors of SSD started from; fc6 and fc7 are freshly initialized.
    "vgg16-caffe": Published(
        _TORCHVISION, "vgg16_features-amdegroot-88682ab5.pth", "88682ab5", 528
    ),
    # ImageNet classifiers for backbones; the first published weights of each.
    "vgg19-imagenet": Published(_TORCHVISION, "vgg19-dcbb9e9d.pth", "dcbb9e9d", 549),
    "resnet18-imagenet": Published(_TORCHVISION, "resnet18-f37072fd.pth", "f37072fd", 45),
    "resnet34-imagenet": Published(_TORCHVISION, "resnet34-b627a593.pth", "b627a593", 84),
    "resnet50-imagenet": Published(_TORCHVISION, "resnet50-0676ba61.pth", "0676ba61", 98),
    "resnet101-imagenet": Published(_TORCHVISION, "resnet101-63fe2227.pth", "63fe2227", 171),
    "mobilenet-v2-imagenet": Published(_TORCHVISION, "mobilenet_v2-b0353104.pth", "b0353104", 14),
    # Its last blocks are wider than ours, which are freshly initialized.
    "mobilenet-v3-large-imagenet": Published(
        _TORCHVISION, "mobilenet_v3_large-8738ca79.pth", "8738ca79", 22
    ),
    "ssdlite320-coco": Published(
        _TORCHVISION, "ssdlite320_mobilenet_v3_large_coco-a79551df.pth", "a79551df", 14
    ),
    "ssd300-coco": Published(_TORCHVISION, "ssd300_vgg16_coco-b556d3b4.pth", "b556d3b4", 136),
}


def locate(path_or_name: str | Path, *, cache_dir: str | Path, mirror: str = "") -> Path:
    """Returns the file for a path or a name, downloading it if needed.

    Args:
      path_or_name: A file, or one of `NAMES`.
      cache_dir: Downloads are kept in its folder `weights`.
      mirror: An address, with a user and password perhaps, or a folder, that has the files
        instead; empty: torchvision's.

    Raises:
      UserError: If it is neither, or the download fails.
    """
    if Path(path_or_name).exists():
        return Path(path_or_name)
    entry = NAMES.get(str(path_or_name))
    if entry is None:
        raise errors.UserError(
            f"{path_or_name}: file not found, and no published weights of that name; the "
            f"names are {', '.join(NAMES)}"
        )
    address = mirror or entry.base
    if "://" not in address:
        return _in_folder(Path(address).expanduser() / entry.filename, entry)
    return download.fetch(
        f"{address.rstrip('/')}/{entry.filename}",
        cache.folder(cache_dir) / "weights" / entry.filename,
        sha256=entry.sha256,
        at_most=entry.mib * 2**20,
        otherwise=f"get the file elsewhere and give its path instead of {path_or_name}, or set "
        f"{_MIRROR} to an address or a folder that has it",
    )


def _in_folder(path: Path, entry: Published) -> Path:
    if not path.is_file():
        raise errors.UserError(
            f"{_MIRROR} is {path.parent}: it has no {entry.filename}; put it there"
        )
    if not download.verified(path, sha256=entry.sha256):
        raise errors.UserError(
            f"{path} is not the expected file: its SHA-256 does not start with {entry.sha256}"
        )
    return path
