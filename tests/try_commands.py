"""Runs the commands of README and docs as a reader would, in a folder of stand-ins.

  python tests/try_commands.py [--folder FOLDER] [--only TEXT]

Pictures, a film, COCO's and YOLO's files and weights that the commands name are made; the VOC
archives, the kangaroos and the real weights are those of ../shared. A training is cut to two steps,
and takes the archives that are there; all else stands as it is written. What needs something that
this machine lacks is listed with the reason. The status is 1 if a command failed.
"""

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
SHARED = ROOT.parent / "shared"
sys.path[:0] = [str(ROOT / "tests"), str(ROOT)]


class Way(NamedTuple):
    """How a command is run in which the pattern is found.

    Attributes:
      pattern: A regular expression.
      words: What stands for words of the command.
      flags: Put behind it; of a flag that is given twice the last counts.
      not_run: Why it is not run, if so.
    """

    pattern: str
    words: Mapping[str, str] = MappingProxyType({})
    flags: str = ""
    not_run: str = ""


SHORT = (
    "--config.train.steps=2 --config.train.batch_size=2 --config.train.cpu_devices=2 "
    "--config.eval.max_images=4 --config.eval.batch_size=2 "
)
OF_VOC = f"--config.data.archives={SHARED}/voc --config.data.eval_split=2007/val "
TRAIN_VOC = f"{SHORT}{OF_VOC}--config.data.train_split=2007/train"
OF_COCO = "--config.data.archives=coco --config.data.eval_split=val2017 "
MOBILENET = f"{SHARED}/weights/mobilenet_v2_imagenet.npz"
HUB = {
    "vgg16-imagenet": f"{SHARED}/weights/vgg16_conv1_to_conv3.npz",
    "mobilenet_v2_imagenet.npz": MOBILENET,
    "ssd300-coco": "ssd300.safetensors",
}
# The first that is found counts.
WAYS = (
    Way(r"srun|gcloud|exec python", not_run="a cluster"),
    Way("--coordinator", not_run="two machines; tests/test_distributed.py has two processes"),
    Way("--camera", not_run="a camera; tests/test_media.py has one made of a file"),
    Way(
        "testdev2017",
        not_run="a detector of COCO; tests/test_results.py has a small one, and test2017",
    ),
    Way("ablations", not_run="days; tests/test_ablations.py trains two for some steps"),
    Way("-m pytest", not_run="it is what CI runs"),
    Way("dataset=folder|finetune.*FOLDER", {"FOLDER": "own_voc"}, SHORT),
    Way("dataset=coco", {"FOLDER": "own_coco"}, SHORT),
    Way("dataset=yolo", {"FOLDER": "own_yolo"}, SHORT),
    Way("finetune", {"kangaroo": f"{SHARED}/own_data/kangaroo"}, SHORT),
    Way("train.*_coco", flags=f"{SHORT}{OF_COCO}--config.data.train_split=val2017"),
    Way("train.*quickstart", flags=SHORT),
    Way("train.py", {"FILE": MOBILENET}, TRAIN_VOC),
    Way("data.check", {"FOLDER": "own_voc"}),
    Way(r"--results FILE\.json", flags=OF_COCO),
    Way("--results FOLDER", {"FOLDER": "results"}, OF_VOC),
    Way("detect.py.*FILE", {"FILE": HUB["ssd300-coco"]}),
    Way(""),
)


def lines(page: Path) -> list[str]:
    """The lines of a page's blocks, joined where they go on."""
    text = re.sub(r"\\\n\s*", "", page.read_text(encoding="utf-8"))
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return "\n".join(blocks).splitlines()


def commands() -> Iterator[str]:
    """Those of README and docs that start Python, as they are written, without comments.

    README's lines of flags for one's own data stand behind the command that it gives for them.
    """
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        for line in lines(page):
            if re.search(r"(^|[/ ])python3? \S", line):
                yield re.sub(r"\s+#.*", "", line).strip()
            elif line.startswith("--config.data.dataset="):
                yield f"python train.py --config configs/ssd300.py --workdir runs/mine {line}"


def as_run(command: str, way: Way) -> list[str]:
    """The words of a command with what stands for them; of several commands the last."""
    last = f"{command.split(' && ')[-1]} {way.flags}"
    for name, value in {**HUB, **way.words}.items():
        last = re.sub(rf"(?<![\w./-]){re.escape(name)}(?![\w./-])", value, last)
    return [sys.executable, *shlex.split(last)[1:]]


def make_stand_ins(folder: Path) -> None:
    """What the commands name, in the folder in which they run."""
    import coco_tree
    import jax
    import test_media
    import test_yolo_data
    import voc_tree

    from ssd_jax import config as config_lib
    from ssd_jax import detector, export
    from ssd_jax.data import classes, coco
    from ssd_jax.models import ssd

    for name in ("train.py", "evaluate.py", "detect.py", "export.py", "configs"):
        (folder / name).symlink_to(ROOT / name)
    for number, name in enumerate(("PICTURE.jpg", "FOLDER/1.jpg", "photos/2.png")):
        place = folder / name
        place.parent.mkdir(exist_ok=True)
        place.write_bytes(voc_tree.jpeg(120, 160, seed=number))
    test_media.film(folder / "FILM.mp4")
    voc_tree.write_plain(
        folder / "own_voc", splits={"train": ["000001", "000002"], "val": ["000003"]}
    )
    test_yolo_data.write_plain(folder / "own_yolo")

    entries = [coco_tree.image(number) for number in (1, 2, 3)]
    things = [coco_tree.thing(number, number) for number in (1, 2, 3)]
    coco_tree.write_archives(folder / "coco", "val2017", entries, things)
    content = {"images": entries, "annotations": things, "categories": coco_tree.CATEGORIES}
    for place in ("instances_val2017.json", *(
        f"own_coco/annotations/instances_{split}.json"
        for split in ("train", "val", "train2017", "val2017")
    )):  # fmt: skip
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        (folder / place).write_text(json.dumps(content))
    for number, entry in enumerate(entries):
        for place in ("val2017", "own_coco/images"):
            (folder / place).mkdir(exist_ok=True)
            (folder / place / entry["file_name"]).write_bytes(voc_tree.jpeg(seed=number))
    rows = [{"image_id": 1, "category_id": 90, "bbox": [2, 3, 18, 15], "score": 0.5}]
    (folder / "FILE.json").write_text(json.dumps(rows))
    (folder / "results").mkdir()
    for name in classes.VOC:
        (folder / f"results/comp4_det_val_{name}.txt").write_text("")

    config = config_lib.Config()
    names = tuple(coco.CATEGORIES.values())
    params = ssd.init(jax.random.key(0), detector.build_model(config.model, len(names)), (300, 300))
    export.write(detector.Detector(config, names, params), folder / HUB["ssd300-coco"])


def make_runs(folder: Path, command: str) -> None:
    """What earlier commands leave where this one wants it, and no run of theirs in its way."""
    if "compare" in command:
        for name in ("a", "b"):
            shutil.copytree(folder / "runs/quickstart", folder / "runs" / name, dirs_exist_ok=True)
    elif "train.py" in command:
        own = re.search(r"--workdir[ =](\S+)", command) or re.search(r"configs/(\w+)\.py", command)
        shutil.rmtree(folder / "runs" / Path(own[1]).name, ignore_errors=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, help="kept, and made if it is not there")
    parser.add_argument("--only", default="", help="only commands with this text in them")
    options = parser.parse_args()
    temporary = tempfile.TemporaryDirectory()
    folder = (options.folder or Path(temporary.name) / "try").absolute()
    if not folder.exists():
        folder.mkdir(parents=True)
        make_stand_ins(folder)
    own = {"PYTHONPATH": str(ROOT), "SSD_JAX_CACHE": str(folder / "cache")}
    failed = 0
    for command in dict.fromkeys(commands()):
        way = next(way for way in WAYS if re.search(way.pattern, command))
        if options.only not in command:
            continue
        if way.not_run:
            print(f"not run ({way.not_run}): {command}", flush=True)
            continue
        make_runs(folder, command)
        start = time.monotonic()
        words = as_run(command, way)
        done = subprocess.run(
            words, cwd=folder, env={**os.environ, **own}, capture_output=True, text=True
        )
        said = "ran" if done.returncode == 0 else "FAILED"
        print(f"{said} ({time.monotonic() - start:.0f} s): {command}", flush=True)
        if done.returncode:
            failed += 1
            print(f"  {shlex.join(words[1:])}\n{done.stdout[-1500:]}\n{done.stderr[-3000:]}")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
