"""Makes small VOC folders, archives and image files for tests."""

import io
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import simplejpeg
from PIL import Image

TRAINVAL = "VOCtrainval_06-Nov-2007.tar"
TEST = "VOCtest_06-Nov-2007.tar"


def pixels(height: int = 24, width: int = 32, seed: int = 0) -> np.ndarray:
    """A smooth image, `[height, width, 3]` uint8, that JPEG hardly changes."""
    y, x = np.mgrid[:height, :width]
    red, green = 255 * x / width, 255 * y / height
    return np.stack([red, green, np.full_like(red, 20 * seed % 256)], axis=-1).astype(np.uint8)


def jpeg(height: int = 24, width: int = 32, seed: int = 0) -> bytes:
    return simplejpeg.encode_jpeg(pixels(height, width, seed), quality=95, colorsubsampling="444")


def encoded(image: Image.Image | np.ndarray, kind: str, **options: object) -> bytes:
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def box(
    name: str = "dog",
    corners: Sequence[object] = (3, 4, 20, 18),
    *,
    difficult: object = 0,
    truncated: object = 0,
) -> str:
    sides = zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True)
    bndbox = "".join(f"<{side}>{value}</{side}>" for side, value in sides)
    return (
        f"<object><name>{name}</name><truncated>{truncated}</truncated>"
        f"<difficult>{difficult}</difficult><bndbox>{bndbox}</bndbox></object>"
    )


def xml(*objects: str, size: tuple[int, int] | None = (24, 32)) -> bytes:
    """An annotation; `size` is (height, width), None for a file without."""
    sides = f"<size><width>{size[1]}</width><height>{size[0]}</height></size>" if size else ""
    return f"<annotation>{sides}{''.join(objects)}</annotation>".encode()


def write(
    root: Path,
    *,
    images: Mapping[str, bytes],
    annotations: Mapping[str, bytes],
    splits: Mapping[str, Sequence[str]] | None = None,
) -> Path:
    """Writes a VOC folder: images by file name, annotations by id, ids by split."""
    files = {f"JPEGImages/{name}": data for name, data in images.items()}
    files |= {f"Annotations/{key}.xml": data for key, data in annotations.items()}
    for name, ids in (splits or {}).items():
        files[f"ImageSets/Main/{name}.txt"] = "".join(f"{key}\n" for key in ids).encode()
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def write_plain(
    root: Path, count: int = 5, *, splits: Mapping[str, Sequence[str]] | None = None, first: int = 1
) -> Path:
    """Writes `count` good images 000001, ... ; image i has i - first + 1 dogs."""
    keys = [f"{number:06d}" for number in range(first, first + count)]
    return write(
        root,
        images={f"{key}.jpg": jpeg(seed=number) for number, key in enumerate(keys)},
        annotations={key: xml(*[box()] * (number + 1)) for number, key in enumerate(keys)},
        splits=splits,
    )


def pack(folder: Path, archive: Path, *, root: str = "VOCdevkit/VOC2007") -> Path:
    """Packs a VOC folder as an archive with the official layout."""
    archive.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(archive, "w") as tar:
        tar.add(folder, arcname=root)
    return archive


def write_archives(folder: Path) -> Path:
    """A folder with VOC2007's trainval archive: train 1 and 2, val 3."""
    ids = {"train": ["000001", "000002"], "val": ["000003"]}
    ids["trainval"] = ["000001", "000002", "000003"]
    tree = write_plain(folder / "unpacked", 3, splits=ids)
    (tree / "ImageSets/Main/dog_train.txt").write_text("000001  1\n000002 -1\n")
    pack(tree, folder / "archives" / TRAINVAL)
    return folder / "archives"
