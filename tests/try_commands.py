"""Runs the commands of README and docs as a reader would, in a folder of stand-ins.

  python tests/try_commands.py [--folder FOLDER] [--only TEXT]

Images, a video, COCO's and YOLO's files and weights that the commands name are made; the VOC
archives, the kangaroos and the real weights are those of ../shared. A training is cut to two steps,
and takes the archives that are there; all else stands as it is written. What a cluster is told to
run is run by two processes, with the variables that it would set. Blocks of Python are run too, and
the commands and flags in the sentences. What needs something that this machine lacks is listed with
the reason. The status is 1 if a command failed.
"""

import argparse
import ast
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import yaml

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
      before: Lines before a block of Python, of what its text has from elsewhere.
      processes: Environment of each process that is started with the command.
    """

    pattern: str
    words: Mapping[str, str] = MappingProxyType({})
    flags: str = ""
    not_run: str = ""
    before: str = ""
    processes: Sequence[Mapping[str, str]] = ({},)


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
TOGETHER = "--config.train.batch_size=4"  # of two processes with two devices each
# The first that is found counts.
WAYS = (
    Way(
        r"\bsrun ",
        {"/shared/runs/ssd300": "runs/slurm"},
        f"{TRAIN_VOC} {TOGETHER}",
        processes=[
            {
                "SLURM_JOB_ID": "7",
                "SLURM_NTASKS": "2",
                "SLURM_STEP_NUM_TASKS": "2",
                "SLURM_STEP_NODELIST": "localhost",
                "SLURM_PROCID": number,
                "SLURM_LOCALID": number,
            }
            for number in "01"
        ],
    ),
    # A pod's hosts ask Google's metadata; these are told.
    Way(
        "gcloud",
        {"/mnt/shared/runs/ssd300": "runs/pod"},
        f"{TRAIN_VOC} {TOGETHER}",
        processes=[
            {
                "JAX_COORDINATOR_ADDRESS": "127.0.0.1:9912",
                "JAX_NUM_PROCESSES": "2",
                "JAX_PROCESS_ID": number,
            }
            for number in "01"
        ],
    ),
    Way(
        "JOB_COMPLETION_INDEX",
        {
            "/shared/runs/ssd300": "runs/pods",
            "ssd-0.ssd:9911": "127.0.0.1:9913",
            "--num-processes=4": "--num-processes=2",
        },
        f"{TRAIN_VOC} {TOGETHER}",
        processes=[{"JOB_COMPLETION_INDEX": number} for number in "01"],
    ),
    Way("--coordinator", {"10.0.0.1:9911": "127.0.0.1:9911"}, f"{SHORT}{TOGETHER}"),
    Way("--camera", {"0": "lavfi:testsrc"}, "--seconds 1 --overwrite"),
    Way("testdev2017", flags="--config.data.archives=coco"),
    Way("ablations.*--base", flags=SHORT),
    Way("ablations", flags=f"{TRAIN_VOC} --configs no_ratio_3"),
    Way("augmentation_gain", flags="--steps 2"),
    Way("benchmarks/all", flags="--only scaling,startup"),
    Way("yolov1", flags="--no-speed"),
    Way("--summary"),
    Way(r"--check$", {"FOLDER": "own_voc"}),
    Way("-m pytest", not_run="it is what CI runs"),
    Way(
        "matching.match",
        before="import numpy as np\n"
        "gt_boxes = np.float32([[[0.1, 0.2, 0.4, 0.6]]])\n"
        "gt_labels = np.int32([[3]])\n",
    ),
    Way("dataset=folder|finetune.*FOLDER", {"FOLDER": "own_voc"}, SHORT),
    Way("dataset=coco", {"FOLDER": "own_coco"}, SHORT),
    Way("dataset=yolo", {"FOLDER": "own_yolo"}, SHORT),
    Way("finetune", {"kangaroo": f"{SHARED}/own_data/kangaroo"}, SHORT),
    Way("train.*_coco", flags=f"{SHORT}{OF_COCO}--config.data.train_split=val2017"),
    Way("train.*quickstart", flags=SHORT),
    Way("train.py", {"FILE": MOBILENET}, TRAIN_VOC),
    Way("data.check", {"FOLDER": "own_voc"}),
    Way("workdir RUN|RUN_A", {"RUN": "runs/quickstart", "RUN_A": "runs/a", "RUN_B": "runs/b"}),
    Way("export.py --workdir runs/quickstart .", flags="--output exported --overwrite"),
    Way("export.py --workdir runs/quickstart", flags="--overwrite"),
    Way(r"--results FILE\.json", flags=OF_COCO),
    Way("--results FOLDER", {"FOLDER": "results"}, OF_VOC),
    Way("detect.py.*FILE", {"FILE": HUB["ssd300-coco"]}),
    Way(""),
)


# Flags in a sentence, and the command that it is about.
BEHIND = (
    (r"--config\.eval\.tta_flip", "python detect.py --workdir runs/quickstart IMAGE.jpg"),
    (r"--config\.eval\.tta_flip", "python evaluate.py --workdir runs/quickstart"),
    (
        r"--(formats|outputs) \w|--config\.eval\.score_threshold=",
        "python export.py --workdir runs/quickstart",
    ),
    (
        r"--config\.(model\.backbone|train\.batch_size)=\w+",
        "python train.py --config configs/ssd300.py --summary",
    ),
)


def blocks(page: Path) -> list[tuple[str, str]]:
    """Language and text of a page's blocks; continued lines are joined."""
    text = re.sub(r"\\\n\s*", "", page.read_text(encoding="utf-8"))
    return re.findall(r"^```(\w*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def lines(page: Path) -> list[str]:
    """The lines of a page's blocks that are no Python, and the commands in its sentences.

    Of a Kubernetes file the arguments of its containers.
    """
    found = []
    for kind, text in blocks(page):
        if kind == "yaml":
            jobs = [part for part in yaml.safe_load_all(text) if part["kind"] == "Job"]
            pods = [job["spec"]["template"]["spec"] for job in jobs]
            found += [arg for pod in pods for box in pod["containers"] for arg in box["args"]]
        elif kind != "python":
            found += text.splitlines()
    sentences = re.sub(r"(?ms)^```.*?^```", "", page.read_text(encoding="utf-8"))
    for span in re.findall(r"`([^`]+)`", sentences):
        if re.match(r"python3? (\S+\.py|-m ssd_jax)", span):
            found.append(span)
        elif span.startswith("train.py --config "):
            found.append(f"python {span}")
        found += [f"{command} {span}" for flags, command in BEHIND if re.match(flags, span)]
    return found


def commands() -> list[str]:
    """Those of README and docs that start Python, as they are written, and blocks of Python.

    README's lines of flags for one's own data stand behind the command that it gives for them.
    Processes that run together are one command, with " & " between them.
    """
    found: list[str] = []
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        for line in lines(page):
            command = re.sub(r"\s+#.*", "", line).strip()
            if re.search("--process-id=[1-9]", line):
                found[-1] += f" & {command}"
            elif re.search(r"(^|[/ ])python3? \S", line):
                found.append(command)
            elif line.startswith("--config.data.dataset="):
                found.append(
                    f"python train.py --config configs/ssd300.py --workdir runs/mine {line}"
                )
        found += [text for kind, text in blocks(page) if kind == "python"]
    return list(dict.fromkeys(found))


def is_block(command: str) -> bool:
    """Whether it is a block of Python."""
    return "\n" in command


def not_installed(block: str) -> str:
    """The packages that a block of Python imports and that are not there."""
    names = [
        alias.name.partition(".")[0]
        for node in ast.walk(ast.parse(block))
        if isinstance(node, ast.Import)
        for alias in node.names
    ]
    return ", ".join(name for name in names if importlib.util.find_spec(name) is None)


def as_run(command: str, way: Way, environment: Mapping[str, str] = MappingProxyType({})) -> list:
    """The words of a command with what stands for them; of several commands the last.

    What a cluster's own command hands to its machines is the command.
    """
    if is_block(command):
        return [sys.executable, "-c", way.before + command]
    if handed := re.search('--command="(.*)"', command):
        command = handed[1]
    last = f"{command.split(' && ')[-1]} {way.flags}"
    for name, value in {**HUB, **way.words}.items():
        last = re.sub(rf"(?<![\w./-]){re.escape(name)}(?![\w./-])", value, last)
    for name, value in environment.items():
        last = last.replace(f"${name}", value)
    words = shlex.split(last)
    python = next(place for place, word in enumerate(words) if re.search("python3?$", word))
    return [sys.executable, *words[python + 1 :]]


def make_stand_ins(folder: Path) -> None:
    """What the commands name, in the folder in which they run."""
    import coco_tree
    import flax.traverse_util
    import jax
    import test_media
    import test_yolo_data
    import voc_tree
    import weight_files

    from ssd_jax import build
    from ssd_jax import config as config_lib
    from ssd_jax.data import classes, coco_official
    from ssd_jax.models import ssd

    scripts = ("train.py", "evaluate.py", "detect.py", "export.py", "configs", "benchmarks")
    (folder / "docs").mkdir()
    for name in (*scripts, "docs/pages.py"):  # which writes beside itself
        (folder / name).symlink_to(ROOT / name)
    for number, name in enumerate(("IMAGE.jpg", "FOLDER/1.jpg", "photos/2.png")):
        place = folder / name
        place.parent.mkdir(exist_ok=True)
        place.write_bytes(voc_tree.jpeg(120, 160, seed=number))
    test_media.video_file(folder / "VIDEO.mp4")
    voc_tree.write_plain(
        folder / "own_voc", splits={"train": ["000001", "000002"], "val": ["000003"]}
    )
    test_yolo_data.write_plain(folder / "own_yolo")

    entries = [coco_tree.image(number) for number in (1, 2, 3)]
    things = [coco_tree.thing(number, number) for number in (1, 2, 3)]
    for split in ("val2017", "testdev2017"):
        coco_tree.write_archives(folder / "coco", split, entries, things)
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
    names = tuple(coco_official.CATEGORIES.values())
    params = ssd.init(jax.random.key(0), build.model(config.model, len(names)), (300, 300))
    arrays = flax.traverse_util.flatten_dict(jax.device_get(params), sep="/")
    weight_files.safetensors(folder / HUB["ssd300-coco"], arrays)  # without metadata of ours


def make_runs(folder: Path, command: str) -> None:
    """What earlier commands leave where this one wants it, and no run of theirs in its way."""
    if is_block(command):
        for file in (folder / "runs/quickstart/export").glob("detector.*"):
            (folder / file.name).unlink(missing_ok=True)
            (folder / file.name).symlink_to(file)
    elif "compare" in command:
        (folder / "comparison.html").unlink(missing_ok=True)
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
    for command in commands():
        way = next(way for way in WAYS if re.search(way.pattern, command))
        if options.only not in command:
            continue
        lacks = not_installed(command) if is_block(command) else ""
        if reason := way.not_run or (lacks and f"{lacks} is not installed"):
            print(f"not run ({reason}): {command}", flush=True)
            continue
        make_runs(folder, command)
        start = time.monotonic()
        parts = [command] if is_block(command) else command.split(" & ")
        started = [
            (as_run(part, way, environment), environment)
            for part in parts
            for environment in way.processes
        ]
        running = [
            subprocess.Popen(
                words,
                cwd=folder,
                env={**os.environ, **own, **environment},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for words, environment in started
        ]
        printed = [process.communicate()[0] for process in running]
        wrong = any(process.returncode for process in running)
        said = "FAILED" if wrong else "ran"
        print(f"{said} ({time.monotonic() - start:.0f} s): {command}", flush=True)
        if wrong:
            failed += 1
            for (words, _), output in zip(started, printed, strict=True):
                print(f"  {shlex.join(words[1:])}\n{output[-4500:]}")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
