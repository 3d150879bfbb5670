"""Runs the benchmarks one after the other, and writes their output as Markdown and JSON.

  pip install -e '.[export]' torch torchvision
  python benchmarks/all.py --archives FOLDER_OF_VOC_ARCHIVES [--only network,loop] [--out FOLDER]

Each is also a command of its own. The JSON holds the machine, the versions and, for each benchmark,
its command, seconds and rows by the headings of its tables. Failures are reported and the
others run. Those that need VOC or a missing package are skipped and listed. Nothing else
should run on the machine meanwhile.
"""

import argparse
import datetime
import importlib.metadata
import importlib.util
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import jax

HERE = Path(__file__).parent
_PEER = ("torch", "torchvision")
BENCHMARKS: dict[str, tuple[str, ...]] = {  # and the packages that each needs beside ours
    "startup": (),
    "huge_pages": (),
    "network": _PEER,
    "inference": (*_PEER, "onnxruntime"),
    "kernels": (),
    "objective": _PEER,
    "postprocess": _PEER,
    "augmentation": (),
    "kernel_gradient": (),
    "depthwise": (),
    "loop": (),
    "memory": (),
    "roofline": (),
    "onnx_runtime": (*_PEER, "onnxruntime"),
    "loader": (),
    "loader_peer": _PEER,
    "scaling": (),
}
WITH_DATA = ("loader", "loader_peer")
PACKAGES = ("jax", "jaxlib", "flax", "torch", "torchvision", "onnxruntime", "numpy")


def machine() -> dict[str, object]:
    """Describes the machine and versions."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "missing"
    return {
        "date": datetime.date.today().isoformat(),
        "devices": [device.device_kind for device in jax.devices()],
        "cores": len(os.sched_getaffinity(0)),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "load": os.getloadavg()[0],
        "versions": versions,
    }


def lacking(name: str, archives: str | None) -> str:
    """Returns the missing requirements of a benchmark."""
    missing = [module for module in BENCHMARKS[name] if not importlib.util.find_spec(module)]
    if missing:
        return f"pip install {' '.join(missing)}"
    return "give --archives" if name in WITH_DATA and not archives else ""


def rows(markdown: str) -> list[dict[str, str]]:
    """Parses the rows of all tables in the output of a benchmark."""
    found: list[dict[str, str]] = []
    headings: list[str] = []
    for line in markdown.splitlines():
        if not line.startswith("|"):
            headings = []
            continue
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if not headings:
            headings = cells
        elif set(line) - set("|-: "):
            found.append(dict(zip(headings, cells, strict=True)))
    return found


def run(name: str, arguments: list[str]) -> dict[str, object]:
    """Runs one benchmark; its errors go to this one's."""
    began = time.monotonic()
    command = [str(HERE / f"{name}.py"), *arguments]
    done = subprocess.run([sys.executable, *command], stdout=subprocess.PIPE, text=True)
    return {
        "name": name,
        "command": " ".join(["python", f"benchmarks/{name}.py", *arguments]),
        "status": done.returncode,
        "seconds": round(time.monotonic() - began, 1),
        "printed": done.stdout,
        "rows": rows(done.stdout),
    }


def write(folder: Path, about: dict[str, object], results: list[dict[str, object]]) -> None:
    """Writes `results.md` and `results.json`; called after each benchmark, so nothing is lost."""
    described = "\n".join(f"- {name}: {value}" for name, value in about.items())
    parts = [f"# What the benchmarks printed\n\n{described}\n"]
    for result in results:
        failed = f"**It failed, with status {result['status']}.**\n\n" if result["status"] else ""
        parts.append(f"## {result['name']}\n\n`{result['command']}`\n\n{failed}{result['printed']}")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.md").write_text("\n".join(parts), encoding="utf-8")
    content = {"machine": about, "benchmarks": results}
    (folder / "results.json").write_text(json.dumps(content, indent=1), encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--archives", help="folder with VOC's archives")
    parser.add_argument("--only", default=",".join(BENCHMARKS), help="names, with commas")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks"))
    options = parser.parse_args()
    names = options.only.split(",")
    if unknown := sorted(set(names) - set(BENCHMARKS)):
        parser.error(f"--only has {', '.join(unknown)}; choose from {', '.join(BENCHMARKS)}")
    about, results = machine(), []
    for name in names:
        if lack := lacking(name, options.archives):
            print(f"{name} is left out: {lack}", flush=True)
            continue
        print(f"{name} ...", flush=True)
        arguments = ["--archives", options.archives] if name in WITH_DATA else []
        results.append(run(name, arguments))
        print(results[-1]["printed"], flush=True)
        write(options.out, about, results)
    return int(any(result["status"] for result in results))


if __name__ == "__main__":
    sys.exit(main())
