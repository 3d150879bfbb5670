"""Output to terminals and logs: one console and one filter that leaves only printable text."""

import contextlib
import io
import logging
import os
import sys
import traceback
import unicodedata
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TextIO

import rich.console
import rich.segment
import rich.text

from ssd_jax import errors

_JOINERS = "\u200c\u200d"  # invisible, but part of how some scripts and emoji are written
_LAYOUT = "\n\t"  # of whole pages, such as tables; a name has neither


def printable(said: object) -> str:
    r"""Escapes text so that no terminal interprets it, in one line.

    Control characters, those that turn the direction of writing, line ends and bytes that are no
    UTF-8 become escapes such as `\x1b`; letters, marks and symbols of any script are kept.

    Args:
      said: A name, path or message, possibly from a third-party file.
    """
    return _escaped(str(said), kept="")


def plain(said: object) -> rich.text.Text:
    """Returns text that the console prints literally: no markup, only `printable` characters."""
    return rich.text.Text(printable(said))


class Console(rich.console.Console):
    """A console that only shows printable text, in tables and progress bars too."""

    def render(
        self,
        renderable: rich.console.RenderableType,
        options: rich.console.ConsoleOptions | None = None,
    ) -> Iterable[rich.segment.Segment]:
        """Yields the filtered segments; rich's own escapes are style and control segments."""
        for segment in super().render(renderable, options):
            if segment.control or _is_clean(segment.text):
                yield segment
            else:
                yield segment._replace(text=_escaped(segment.text, kept=_LAYOUT))

    def render_str(self, text: str, **options: Any) -> rich.text.Text:
        """Text of markup; filtered before it is measured, so that tables keep their columns."""
        return super().render_str(_escaped(text, kept=_LAYOUT), **options)


stdout = Console(highlight=False, soft_wrap=True)


def error(line: object) -> None:
    """Writes one line to standard error, whatever is in it."""
    warn(f"error: {line}")


def warn(line: object) -> None:
    """Writes one line to standard error, whatever is in it."""
    sys.stderr.write(printable(" ".join(str(line).split())) + "\n")


def run(main: Callable[[], int | None]) -> int:
    """Calls the main function of a script and reports its errors.

    Args:
      main: Gives the exit status; None is 0.

    Returns:
      The exit status: 2 after a mistake by the user or trouble of the machine such as a full disk,
      which is one line on standard error; `errors.TRY_AGAIN` of a run that was stopped by a signal
      and saved its state; 130 after Ctrl-C; 1 after any other exception, whose traceback is shown.
    """
    prepare()
    try:
        return main() or 0
    except errors.UserError as mistake:
        error(mistake)
        return 2
    except errors.StoppedError as stopped:
        warn(stopped)
        return errors.TRY_AGAIN
    except KeyboardInterrupt:
        warn("interrupted")
        return 130
    except Exception as failure:
        if errors.is_of_machine(failure):
            error(errors.of_machine(failure))
            return 2
        sys.stderr.write(_escaped(traceback.format_exc(), kept=_LAYOUT))
        return 1


def prepare() -> None:
    """Prepares standard output and error for any text and for a closed reader.

    Characters missing in the encoding are escaped. A stream that is closed, or whose reader or
    terminal is gone, discards its input: a failure to print never costs a result. Log records and
    warnings are filtered too.
    """
    _occupy_closed_streams()
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name) or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
        if not isinstance(stream, _Lasting):
            setattr(sys, name, _Lasting(stream))
    if logging.getLogRecordFactory() is not _printable_record:
        logging.setLogRecordFactory(_printable_record)
        warnings.formatwarning = _printable_warning


class _Lasting:
    """A stream that discards its input once it cannot be written to."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, said: str) -> int:
        with self._outliving():
            return self._stream.write(said)
        return len(said)

    def flush(self) -> None:
        with self._outliving():
            self._stream.flush()

    @contextlib.contextmanager
    def _outliving(self) -> Iterator[None]:
        """Discards everything once the reader (EPIPE), terminal (EIO) or disk space is gone."""
        try:
            yield
        except OSError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)


def _occupy_closed_streams() -> None:
    """Occupies the descriptors of closed streams, which files would get otherwise."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free


def _printable_record(*args: Any, **kwargs: Any) -> logging.LogRecord:
    record = logging.LogRecord(*args, **kwargs)
    with contextlib.suppress(TypeError, ValueError):  # logging reports a bad format itself
        record.msg, record.args = _escaped(record.getMessage(), kept=_LAYOUT), ()
    return record


def _printable_warning(*args: Any, **kwargs: Any) -> str:
    return _escaped(_format_warning(*args, **kwargs), kept=_LAYOUT)


_format_warning = warnings.formatwarning


def _escaped(said: str, *, kept: str) -> str:
    if _is_clean(said):
        return said
    return "".join(each if each in kept or _shows(each) else _escape(each) for each in said)


def _is_clean(said: str) -> bool:
    return said.isprintable()


def _shows(character: str) -> bool:
    return (
        character.isprintable()
        or character in _JOINERS
        or unicodedata.category(character) in ("Zs", "Co")
    )


def _escape(character: str) -> str:
    return character.encode("unicode_escape", errors="surrogatepass").decode("ascii")
