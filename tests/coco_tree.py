"""Makes small official archives of COCO for tests."""

import json
import zipfile
from pathlib import Path

import voc_tree

from ssd_jax.data import coco_official

CATEGORIES = [{"id": number, "name": name} for number, name in coco_official.CATEGORIES.items()]


def image(number: int) -> dict:
    return {"id": number, "file_name": f"{number:012d}.jpg", "height": 24, "width": 32}


def thing(number: int, image_id: int, *, category_id: int = 90, **fields) -> dict:
    bbox = [2.12, 3.34, 18.05, 15.51]
    entry = {"id": number, "image_id": image_id, "category_id": category_id, "bbox": bbox}
    return {
        **entry,
        "area": 100.25,
        "iscrowd": 0,
        "segmentation": [[2, 3, 20, 3, 20, 18]],
        **fields,
    }


def write_archives(
    folder: Path, split: str, images: list[dict], things: list[dict], *, categories=CATEGORIES
) -> Path:
    """Both archives of a split, with the official layout; the images are 32 x 24."""
    folder.mkdir(parents=True, exist_ok=True)
    archive_of_images, tables = coco_official.archives_of(split)
    inside = archive_of_images.filename.removesuffix(".zip")
    with zipfile.ZipFile(folder / archive_of_images.filename, "w") as archive:
        for number, entry in enumerate(images):
            data = voc_tree.jpeg(seed=number)
            archive.writestr(f"{inside}/{entry['file_name']}", data)
    content = {"info": {}, "images": images, "categories": categories}
    if coco_official.SPLITS[split].annotated:
        content["annotations"] = things
    with zipfile.ZipFile(folder / tables.filename, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"annotations/{coco_official.SPLITS[split].json}", json.dumps(content))
    return folder
