"""Shared by the scripts: flags, one-line errors, the console."""

import contextlib
import functools
import logging as std_logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from absl import flags, logging
from ml_collections import config_flags
from rich import progress, text

from ssd_jax import cache, config_checks, console, errors, files, renamed
from ssd_jax import config as config_lib

if TYPE_CHECKING:
    from ssd_jax import detector, load

_HUGE_PAGES = "glibc.malloc.hugetlb"
_HUGE_PAGES_FILE = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def run(main: Callable[[Sequence[str]], None]) -> NoReturn:
    """Runs the `main` of a script with the command line, which it has to pass to `parse`.

    See `console.run` for the handling of errors.
    """
    _quiet()
    status = console.run(functools.partial(main, sys.argv))
    if status and "jax" in sys.modules:  # nothing else knows of other processes
        from ssd_jax import distributed

        distributed.leave(status)
    sys.exit(status)


def parse(
    argv: Sequence[str], *, saved: Callable[[], config_lib.Config] | None = None
) -> list[str]:
    """Parses flags; `FLAGS.config` is then the config that the command line describes.

    Args:
      argv: The command line, the script's name first.
      saved: Returns the config of a trained network if there is no `--config FILE`; the
        values of other flags are known when it is called. Without it, `--config FILE` is required.

    Returns:
      The arguments that are no flags.

    Raises:
      UserError: If a flag, a field of the config or its value is wrong.
    """
    argv, plain_names = _parted(argv, say=console.warn)
    names = [argument.split("=")[0].lstrip("-") for argument in argv[1:]]
    if "help" in names:
        sys.stdout.write(f"{sys.modules['__main__'].__doc__}\n{flags.FLAGS.main_module_help()}\n")
        sys.exit(0)
    try:
        if (file := _config_file(argv)) is not None:
            _check_file(file.partition(":")[0])
            config_flags.DEFINE_config_file(
                "config", None, "File whose get_config() is the config", sys_argv=list(argv)
            )
        elif saved is None:
            raise errors.UserError("--config is missing: try --config configs/quickstart.py")
        else:
            plain = [a for a in argv if not a.startswith(("--config.", "-config."))]
            flags.FLAGS(plain)
            config_flags.DEFINE_config_dataclass("config", saved(), sys_argv=list(argv))
        rest = flags.FLAGS(list(argv))[1:]
        config_checks.validate(flags.FLAGS.config)
        return [*rest, *plain_names]
    except flags.Error as error:
        raise _root(error) or errors.UserError(f"{error}; --help lists the flags") from None
    except SyntaxError as error:
        raise errors.UserError(
            f"--config {_config_file(argv)} is no Python file with a get_config(): {error}"
        ) from None
    except (TypeError, ValueError) as error:
        if isinstance(error, errors.UserError):
            raise
        given = " ".join(argument for argument in argv[1:] if "config." in argument)
        raise errors.UserError(f"{given}: a value is not of its field's type ({error})") from None
    except (KeyError, AttributeError) as error:
        known = renamed.field_now(str(error.args[0]).rstrip("'").rpartition("'")[2])
        raise errors.UserError(
            f"{error.args[0]}; {known or 'ssd_jax/config.py lists the fields and their defaults'}"
        ) from None


def _root(error: BaseException) -> errors.UserError | None:
    """Finds the UserError of a config file behind the errors of its loader."""
    found = _root(error.__context__) if error.__context__ else None
    return found or (error if isinstance(error, errors.UserError) else None)


def split_cpu(devices: int) -> None:
    """Splits the CPU into devices, before JAX initializes its backends; 0 changes nothing.

    A number of devices in XLA_FLAGS takes precedence.
    """
    if devices and "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        import jax

        jax.config.update("jax_num_cpu_devices", devices)


def use_huge_pages() -> None:
    """Restarts this script with huge memory pages where glibc has to request them.

    XLA allocates memory at every step; in small pages this takes up to a third of a step on a CPU
    (benchmarks/huge_pages.py). glibc requests huge pages only if GLIBC_TUNABLES is set when the
    process starts; an existing setting takes precedence. Does nothing where Linux gives huge pages
    to all or to none, without glibc 2.35, and where more than `python SCRIPT` has been started,
    such as a notebook or a profiler.
    """
    options = sys.orig_argv[1 : -len(sys.argv)]
    alone = sys.orig_argv[-len(sys.argv) :] == sys.argv and all(
        option.startswith("-") and option not in ("-c", "-m") for option in options
    )
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    if alone and _HUGE_PAGES not in tunables and _huge_pages_on_request():
        tunables = ":".join(filter(None, (tunables, f"{_HUGE_PAGES}=1")))
        environment = {**os.environ, "GLIBC_TUNABLES": tunables}
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)


def _huge_pages_on_request() -> bool:
    """Whether Linux gives huge pages on request and its libc can request them."""
    try:
        library, version = (os.confstr("CS_GNU_LIBC_VERSION") or "").split()
        new_enough = tuple(map(int, version.split("."))) >= (2, 35)
        return library == "glibc" and new_enough and "[madvise]" in _HUGE_PAGES_FILE.read_text()
    except (AttributeError, ValueError, OSError):  # another system
        return False


def keep_compiled(cache_dir: str) -> None:
    """Caches compiled programs in `cache_dir`, so that a restart is quick.

    JAX_COMPILATION_CACHE_DIR wins; empty, it switches this off.
    """
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        import jax

        folder = cache.folder(cache_dir) / "compiled"
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)  # there are dozens


def config_name(argv: Sequence[str]) -> str:
    """The name of the config file on the command line, without its ending, and its argument."""
    path, _, argument = (_config_file(_parted(argv)[0]) or "run").partition(":")
    return "_".join(filter(None, (Path(path).stem, argument)))


def find_trained() -> "load.Trained":
    """The network that the flags `--workdir`, `--checkpoint` or `--weights` name.

    The report on third-party weights is printed when the detector is built.

    Raises:
      UserError: If none or several are given, or there is no such network.
    """
    from ssd_jax import load

    given = flags.FLAGS
    named = [path for path in (given.workdir, given.checkpoint, given.weights) if path]
    if len(named) != 1:
        raise errors.UserError(
            "give one of --workdir DIR, --checkpoint DIR/checkpoints/STEP and --weights FILE"
        )
    if not given.weights:
        return load.find_run(named[0])
    return load.find(
        named[0],
        data=given.config.data if "config" in given else _given_data(sys.argv),
        say=functools.partial(console.stdout.print, markup=False),
    )


def _given_data(argv: Sequence[str]) -> config_lib.DataConfig:
    """Parses `config.data` from the command line before the rest of the config is known."""
    values = flags.FlagValues()
    values.set_gnu_getopt()
    known, _ = _parted(argv)
    config_flags.DEFINE_config_dataclass(
        "config", config_lib.Config(), flag_values=values, sys_argv=list(known)
    )
    values(known, known_only=True)
    return values.config.data


@contextlib.contextmanager
def counter(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Shows a progress bar on a terminal; yields a function to call with the number done."""
    with progress.Progress(
        console=console.stdout, disable=not console.stdout.is_terminal, transient=True
    ) as bar:
        task = bar.add_task(what, total=total)
        yield lambda done: bar.update(task, completed=done)


def write_loaded(found: "detector.Detector", folder: Path) -> dict[str, Path]:
    """Writes `weights.txt`, the report on each array of a third-party checkpoint by name and shape.

    Args:
      found: The detector.
      folder: An existing folder.

    Returns:
      Its path for `show_places`; empty for other detectors.

    Raises:
      OSError: If it can't be written.
    """
    if found.loaded is None:
        return {}
    place = folder / "weights.txt"
    files.write(place, found.loaded.whole())
    return {"weights": place}


def show_places(places: Mapping[str, Path]) -> None:
    """Prints the paths of all outputs."""
    for name, path in places.items():
        console.stdout.print(text.Text.assemble((f"{name:>11}", "bold"), "  ", console.plain(path)))


def _parted(
    argv: Sequence[str], *, say: Callable[[str], None] = lambda note: None
) -> tuple[list[str], list[str]]:
    """Splits at `--` into arguments whose flags have their current names, and file names.

    Args:
      argv: The command line.
      say: Called with a sentence for each flag given by an old name.
    """
    end = list(argv).index("--") if "--" in argv else len(argv)
    known = [renamed.flag(_with_underscores(argument)) for argument in argv[:end]]
    for note in filter(None, (note for _, note in known)):
        say(note)
    return [argument for argument, _ in known], list(argv[end + 1 :])


def _with_underscores(argument: str) -> str:
    """A flag's name in either spelling: --process-id is --process_id."""
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument.partition("=")
    return "--" + name[2:].replace("-", "_") + equals + value


def _config_file(argv: Sequence[str]) -> str | None:
    for argument, following in zip(argv, [*argv[1:], ""], strict=True):
        name, equals, value = argument.lstrip("-").partition("=")
        if name == "config" and argument.startswith("-"):
            return value if equals else following
    return None


def _check_file(path: str) -> None:
    """Checks that a config file exists, which ml_collections reports only at first use."""
    if not os.path.isfile(path):
        raise errors.UserError(f"--config {path}: file not found")


def _quiet() -> None:
    """Keeps the console for the output of the scripts, warnings and errors."""
    logging.set_verbosity(logging.WARNING)
    logging.set_stderrthreshold(logging.WARNING)
    std_logging.getLogger("jax").setLevel(std_logging.WARNING)
    warnings.filterwarnings("ignore", module="orbax")
