"""Ends detect.py at random moments: what it leaves has to be whole, and to agree with its list.

  python tests/kill_detect.py [--trials 20] [--seed 0]

Each trial detects in images and a video, and sends SIGTERM, SIGHUP or both at a random moment.
"""

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import av
import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))
import scripts
import test_detect_script
import test_media

IMAGES, FRAMES = 60, 400


def trial(folder, output, chance):
    """One run that is ended; gives a line for the reader."""
    names = [str(path) for path in sorted(folder.glob("*.jpg"))]
    command = [
        sys.executable, scripts.ROOT / "detect.py", "--workdir", folder / "workdir",
        "--score_threshold", "0", "--output", output, *names, folder / "video.mp4",
    ]  # fmt: skip
    sent = chance.choice([[signal.SIGTERM], [signal.SIGHUP], [signal.SIGHUP, signal.SIGTERM]])
    after = chance.randrange(IMAGES + 1)
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        while process.poll() is None and len(list(output.glob("*.*"))) < max(1, after):
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 0.5))
        for number in sent:
            process.send_signal(number)
        _, said = process.communicate()
    assert process.returncode in (0, 128 + signal.SIGTERM, 128 + signal.SIGHUP), said
    assert "Traceback" not in said
    done = json.loads((output / "detections.json").read_text(encoding="utf-8"))
    check(done, output)
    names = "+".join(number.name for number in sent)
    return f"{names}: status {process.returncode}, {len(done)} inputs"


def check(done, output):
    """Every copy is whole, is listed, and has the frames that are listed."""
    copies = {path.name for path in output.iterdir()} - {"detections.json"}
    assert copies == {Path(name).name for name in done}
    for name, found in done.items():
        copy = output / Path(name).name
        if "frames" in found:
            with av.open(str(copy)) as container:
                assert sum(1 for _ in container.decode(video=0)) == len(found["frames"])
        else:
            with Image.open(copy) as image:
                assert np.asarray(image).any()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    chance = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        test_detect_script.write_workdir(folder / "workdir")
        for number in range(IMAGES):
            test_detect_script.noise(folder / f"{number:03d}.jpg", size=(400, 300))
        test_media.video_file(folder / "video.mp4", frames=FRAMES)
        for number in range(options.trials):
            print(trial(folder, folder / f"out_{number}", chance), flush=True)


if __name__ == "__main__":
    main()
