"""What reaches a terminal or a log: one console, one filter that leaves printable text alone."""

import io
import logging
import os
import sys
import unicodedata
from collections.abc import Iterable
from typing import Any

import rich.console
import rich.segment
import rich.text

_JOINERS = "\u200c\u200d"  # invisible, but part of how some scripts and emoji are written
_LAYOUT = "\n\t"  # of whole pages, such as tables; a name has neither


def printable(said: object) -> str:
    r"""Text that no terminal takes for a command, in one line.

    Control characters, those that turn the direction of writing, line ends and bytes that are no
    UTF-8 become escapes such as `\x1b`; letters, marks and symbols of any script stay.

    Args:
      said: A name, path or message, perhaps of somebody else's file.
    """
    return _escaped(str(said), kept="")


def plain(said: object) -> rich.text.Text:
    """What a console prints as it is: brackets are no markup, and all is `printable`."""
    return rich.text.Text(printable(said))


class Console(rich.console.Console):
    """A console that shows nothing but printable text, and outlives who reads it.

    Whatever is printed, tables and progress bars too, passes one filter. Where the reader is gone,
    as behind `| head` or when a terminal was closed, or standard output is closed or takes no more,
    it falls silent, and the work goes on.
    """

    def render(
        self,
        renderable: rich.console.RenderableType,
        options: rich.console.ConsoleOptions | None = None,
    ) -> Iterable[rich.segment.Segment]:
        """The segments of what is printed; escapes of rich's own are its style and control."""
        for segment in super().render(renderable, options):
            if segment.control or _is_clean(segment.text):
                yield segment
            else:
                yield segment._replace(text=_escaped(segment.text, kept=_LAYOUT))

    def render_str(self, text: str, **options: Any) -> rich.text.Text:
        """Text of markup; filtered before it is measured, so that tables keep their columns."""
        return super().render_str(_escaped(text, kept=_LAYOUT), **options)

    def on_broken_pipe(self) -> None:
        """Falls silent."""
        self.quiet = True
        _point_to_nothing(sys.stdout)

    def _check_buffer(self) -> None:
        try:
            super()._check_buffer()
        except OSError as failure:  # of a terminal that was closed, or a full disk
            self.on_broken_pipe()
            warn(f"standard output takes no more ({failure.strerror})")


stdout = Console(highlight=False, soft_wrap=True)


def error(line: object) -> None:
    """Writes one line to standard error, whatever is in it."""
    warn(f"error: {line}")


def warn(line: object) -> None:
    """Writes one line to standard error, whatever is in it."""
    try:
        sys.stderr.write(printable(" ".join(str(line).split())) + "\n")
    except OSError:  # whoever read it is gone
        _point_to_nothing(sys.stderr)


def settle() -> None:
    """Writes out what standard output and error hold, before an exit that this must not spoil."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            _point_to_nothing(stream)


class _PrintableRecords(logging.Filter):
    """Filters what is logged."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = _escaped(record.getMessage(), kept=_LAYOUT), ()
        return True


def prepare() -> None:
    """Readies standard output and error for any text, and for a reader that goes away.

    An encoding that lacks a letter gets its escape; a stream that is closed takes all and keeps
    nothing; what is logged is printable too.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    for handler in (*logging.getLogger().handlers, *logging.getLogger("absl").handlers):
        handler.addFilter(_PrintableRecords())


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


def _point_to_nothing(stream: Any) -> None:
    """Gives a stream whose reader is gone a place that takes all."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
