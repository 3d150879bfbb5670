import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich import console

from ssd_jax import cli, config_files
from ssd_jax import config as config_lib
from ssd_jax.evaluation import coco, run, tables, voc
from ssd_jax.training import workdir as workdir_lib


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
@pytest.mark.parametrize("name", [None, "runs/page.html"])
def test_a_full_disk_is_one_line(capsys, number, name):
    def main(argv):
        raise OSError(number, os.strerror(number), name)

    with pytest.raises(SystemExit, match="2"):
        cli.run(main)
    line = capsys.readouterr().err
    assert line.startswith(f"error: {f'{name}: ' if name else ''}{os.strerror(number)}: make room")
    assert line.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (PermissionError(errno.EACCES, "denied", "a\x1b"), "a\\x1b: denied: give the permission"),
        (OSError(errno.EMFILE, "too many"), "too many: allow more open files (ulimit -n)"),
        (OSError(errno.EIO, "failed", "a"), "a: failed: mend that"),
        (MemoryError(), "out of memory: free memory"),
    ],
)
def test_trouble_of_the_machine_is_one_line(capsys, error, line):
    def main(argv):
        raise error

    with pytest.raises(SystemExit, match="2"):
        cli.run(main)
    assert capsys.readouterr().err == f"error: {line}, and run the same command again\n"


def test_an_error_of_the_code_keeps_its_traceback(capsys):
    def main(argv):
        raise OSError("no number of the system's")

    with pytest.raises(SystemExit, match="1"):
        cli.run(main)
    assert "Traceback" in capsys.readouterr().err


def restarted(tmp_path, *before, setting="always [madvise] never", tunables=None):
    """What each start of a script that asks for huge pages says: its number and its tunables."""
    (tmp_path / "setting").write_text(setting)
    (tmp_path / "script.py").write_text(
        "import os, sys\nfrom pathlib import Path\nfrom ssd_jax import cli\n"
        "print(os.getpid(), os.environ.get('GLIBC_TUNABLES'), *sys.argv[1:], flush=True)\n"
        f"cli._HUGE_PAGES_FILE = Path({str(tmp_path / 'setting')!r})\n"
        "cli.use_huge_pages()\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    done = subprocess.run(
        [sys.executable, *before, tmp_path / "script.py", "--flag", "a value"],
        env=environment | ({"GLIBC_TUNABLES": tunables} if tunables else {}),
        capture_output=True,
        text=True,
        check=True,
    )
    lines = [line.split(maxsplit=2) for line in done.stdout.splitlines()]
    assert len({number for number, _, _ in lines}) == 1  # it stays the same process
    assert all(rest == "--flag a value" for _, _, rest in lines)
    return [tunables for _, tunables, _ in lines]


def test_what_stands_behind_two_dashes_is_a_name():
    """Whatever it looks like: a flag, a field of the config or a call for help."""
    names = ["--a-b.jpg", "--config.jpg", "--config.train.steps=x", "--help", "-c.jpg", "--"]
    code = (
        "import sys; from ssd_jax import cli, config; from absl import flags\n"
        "flags.DEFINE_string('out_put', None, ''); flags.FLAGS.set_gnu_getopt()\n"
        "print(cli.parse(sys.argv, saved=config.Config), flags.FLAGS.out_put,"
        " flags.FLAGS.config.train.steps)"
    )
    given = ["one.jpg", "--out-put", "x", "--config.train.steps=7", "--", *names]
    done = subprocess.run(
        [sys.executable, "-c", code, *given], capture_output=True, text=True, check=False
    )
    assert done.stdout == f"{['one.jpg', *names]} x 7\n", done.stderr


HUGE, OTHER = "glibc.malloc.hugetlb=1", "glibc.malloc.arena_max=2"


@pytest.mark.skipif(
    not getattr(os, "confstr_names", {}).get("CS_GNU_LIBC_VERSION")
    or tuple(map(int, os.confstr("CS_GNU_LIBC_VERSION").split()[1].split("."))) < (2, 35),
    reason="no glibc that knows huge pages",
)
@pytest.mark.parametrize(
    ("before", "given", "starts"),
    [
        ([], {}, ["None", HUGE]),
        (["-u"], {}, ["None", HUGE]),
        ([], {"tunables": OTHER}, [OTHER, f"{OTHER}:{HUGE}"]),
        ([], {"tunables": "glibc.malloc.hugetlb=0"}, ["glibc.malloc.hugetlb=0"]),
        ([], {"setting": "[always] madvise never"}, ["None"]),
        ([], {"setting": "always madvise [never]"}, ["None"]),
        (["-m", "cProfile", "-o", os.devnull], {}, ["None"]),
    ],
)
def test_a_script_restarts_for_huge_pages(tmp_path, before, given, starts):
    assert restarted(tmp_path, *before, **given) == starts


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("my[/run]", "my[/run]"),
        ("my[run]", "my[run]"),
        (":dog: [bold]\\", ":dog: [bold]\\"),
        ("\udcff" + 100 * " long", "\\udcff" + 100 * " long"),
    ],
)
def test_places_are_printed_as_they_are(capsys, name, shown):
    cli.show_places({"report": Path(name)})
    assert capsys.readouterr().out == f"     report  {shown}\n"


def test_class_names_are_printed_as_they_are():
    names = ("[/dog]", "[cat]")
    curves = voc.precision_recall({}, {}, class_names=names)
    nothing = voc.summarize(curves, use_07_metric=True)
    result = run.Evaluation(nothing, nothing, coco.evaluate({}, {}, class_names=names), 0, {}, {})
    out = console.Console(width=80)
    with out.capture() as captured:
        out.print(tables.evaluation(result))
    for name in names:
        assert name in captured.get()


def test_fields_that_changed_are_printed_as_they_are(capsys, tmp_path):
    config = config_lib.Config(data=config_lib.DataConfig(path="my[run]"))
    config_files.save(tmp_path / "config.json", config, ("dog",))
    config.data.path = "my[/run]"
    workdir_lib._check_same_run(tmp_path, config, ("dog",), change_config=True)
    assert "'my[run]' in the run, 'my[/run]' in the config" in capsys.readouterr().out
