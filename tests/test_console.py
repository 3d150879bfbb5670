"""Whatever is printed or logged is printable text, and a reader that goes away costs nothing."""

import errno
import io
import logging
import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import rich.progress
from rich import table

from ssd_jax import console, errors
from ssd_jax.data import check
from ssd_jax.evaluation import coco, run, tables, voc

ROOT = Path(__file__).parent.parent
HOSTILE = "a\x1b]0;title\x07\x1b[31m\x9b2J\r\u202eb\udcff"
SHOWN = "a\\x1b]0;title\\x07\\x1b[31m\\x9b2J\\r\\u202eb\\udcff"


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        (HOSTILE, SHOWN),
        ("two\nlines\tand \u2028more", "two\\nlines\\tand \\u2028more"),
        ("größe 猫 кот قط บ้าน 👩\u200d🚒 a\u00a0b", "größe 猫 кот قط บ้าน 👩\u200d🚒 a\u00a0b"),
        ("\U000e0041\ufeff", "\\U000e0041\\ufeff"),
        (Path("a\x1bb"), "a\\x1bb"),
    ],
)
def test_text_is_left_and_commands_are_escaped(said, shown):
    assert console.printable(said) == shown
    assert console.plain(said).plain == shown


def printed(*things, **options):
    out = console.Console(width=200, file=io.StringIO(), highlight=False, **options)
    for thing in things:
        out.print(thing)
    return out.file.getvalue()


def test_every_way_to_print_passes_the_filter():
    grid = table.Table("name", title=HOSTILE, caption=HOSTILE)
    grid.add_row(HOSTILE)
    grid.add_row(console.plain(HOSTILE))
    shown = printed(HOSTILE, grid, {HOSTILE: 1})
    assert not set("\x1b\x07\x9b\r\u202e\udcff") & set(shown)
    assert shown.count("\\x9b2J") == 6


def test_a_terminal_gets_the_colors_of_the_console_alone():
    shown = printed("[red]x[/red]\x1b[32my", force_terminal=True, color_system="standard")
    assert shown == "\x1b[31mx\x1b[0m\\x1b[32my\n"


def test_a_progress_bar_passes_the_filter():
    out = console.Console(file=io.StringIO(), force_terminal=True, width=80)
    with rich.progress.Progress(console=out) as bar:
        bar.add_task("\x1b]0;title", total=1)
    assert "\x1b]0" not in out.file.getvalue()
    assert "\\x1b]0" in out.file.getvalue()


def test_columns_stay_in_line_beside_an_escape():
    curves = voc.precision_recall({}, {}, class_names=("\x1b[31mdog\n", "cat"))
    nothing = voc.summarize(curves, use_07_metric=True)
    figures = coco.evaluate({}, {}, class_names=("\x1b[31mdog\n", "cat"))
    shown = printed(tables.evaluation(run.Evaluation(nothing, nothing, figures, 0, {}, {})))
    dog, cat = (
        next(line for line in shown.splitlines() if name in line) for name in ("dog", "cat")
    )
    assert "\\x1b[31mdog\\n" in dog
    assert len(dog) == len(cat)


def test_the_checkers_tables_pass_the_filter():
    nothing = np.zeros(0)
    objects = check.Objects(np.zeros((0, 4)), nothing, nothing, nothing, nothing, nothing)
    assert SHOWN in printed(check.class_table(objects, [HOSTILE], np.zeros(0, bool)))


def test_errors_logs_and_warnings_are_printable(capsys):
    before = logging.getLogRecordFactory(), warnings.formatwarning
    heard = logging.StreamHandler(io.StringIO())
    logging.getLogger("of_a_library").addHandler(heard)
    try:
        console.prepare()
        console.error("a\x1b[31m\nb")
        logging.getLogger("of_a_library").warning("%s of %d", "a\x1b[31m", 2)
        assert warnings.formatwarning("a\x1b[31m", UserWarning, "f", 1, "").count("\\x1b[31m") == 1
    finally:
        logging.setLogRecordFactory(before[0])
        warnings.formatwarning = before[1]
        logging.getLogger("of_a_library").removeHandler(heard)
    assert capsys.readouterr().err == "error: a\\x1b[31m b\n"
    assert heard.stream.getvalue() == "a\\x1b[31m of 2\n"


def raising(error):
    def main():
        raise error

    return main


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (errors.UserError("a\nb"), 2, "error: a b"),
        (OSError(errno.ENOSPC, "full", "f"), 2, "error: f: full: make room, and run the same"),
        (errors.StoppedError("saved"), errors.TRY_AGAIN, "saved"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (RuntimeError("a\x1b[31m"), 1, "Traceback"),
    ],
)
def test_what_ends_a_script_says_so_with_its_status(capsys, error, status, line):
    assert console.run(raising(error)) == status
    said = capsys.readouterr().err
    assert said.startswith(line)
    assert "\x1b" not in said


SCRIPT = """
import sys
from ssd_jax import console
def main():
    for k in range(3000):
        console.stdout.print("größe 猫", k)
        print("größe 猫", k)
    console.warn("größe 猫")
    open(sys.argv[1], "w").write("done")
sys.exit(console.run(main))
"""


@pytest.mark.parametrize(
    ("ending", "encoding"),
    [
        ("", "ascii"),
        ("| head -n 1", "utf-8"),
        (">&- 2>&-", "utf-8"),
        ("<&- >&-", "ascii"),
        ("> /dev/full", "utf-8"),
    ],
)
def test_standard_output_costs_no_result(tmp_path, ending, encoding):
    (tmp_path / "script.py").write_text(SCRIPT, encoding="utf-8")
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {sys.executable} script.py done {ending}"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONIOENCODING": encoding, "PYTHONPATH": str(ROOT)},
        capture_output=True,
    )
    assert (done.returncode, b"Traceback" in done.stderr) == (0, False), done.stderr
    assert (tmp_path / "done").read_text() == "done"
    if not ending:
        assert done.stdout.startswith(b"gr\\xf6\\xdfe \\u732b 0\n")
