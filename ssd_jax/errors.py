"""Errors that end a script without a traceback: mistakes to fix, and runs to resume."""

import errno
import os

TRY_AGAIN = 75
"""Exit status of a run that the same command resumes (EX_TEMPFAIL of sysexits.h)."""

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)
_CURES = {
    **dict.fromkeys(_NO_ROOM, "make room"),
    **dict.fromkeys(_FORBIDDEN, "give the permission"),
    errno.EMFILE: "allow more open files (ulimit -n)",
    errno.ENFILE: "close what holds files open",
    errno.ENOMEM: "free memory",
    **dict.fromkeys(
        (errno.EIO, errno.ESTALE, errno.EBUSY, errno.EAGAIN, errno.ETIMEDOUT, errno.ENOLCK),
        "mend that",
    ),
    **dict.fromkeys((errno.ENOTCONN, errno.EHOSTDOWN, errno.EREMOTEIO), "mend that"),
}
"""By number of the system's errors: what helps, where the machine is at fault and not a file."""


class UserError(ValueError):
    """A mistake in a file, a field or a value that the user can mend.

    Its message is one line that names the file, field or value and the way out. The scripts print
    that line and exit with status 2; every other exception keeps its traceback.
    """


class MachineError(UserError):
    """Trouble of the machine: no permission, no room, no memory, too many open files.

    The data may be good, and the trouble passes without changing them; so it is never treated as a
    damaged file, nor remember it.
    """


class StoppedError(BaseException):
    """A run was stopped by a signal and saved its state: the scripts exit with `TRY_AGAIN`.

    Like KeyboardInterrupt it is no Exception, so that nothing on its way takes it for a failure.
    """


def is_of_machine(error: BaseException) -> bool:
    """Whether an error was caused by the machine rather than by the content of a file.

    Errors that libraries raise without an error number, such as Pillow's OSError for a truncated
    image, are caused by the file; so is a missing file.
    """
    if isinstance(error, MachineError | MemoryError):
        return True
    return isinstance(error, OSError) and error.errno in _CURES


def in_words(text: str) -> BaseException | None:
    """Recognizes trouble of the machine in the message of a library without error numbers.

    TensorStore and XLA put the system's words into their own, as in `[OS error 24: EMFILE Too many
    open files]`.

    Returns:
      An error that `is_of_machine`, or None.
    """
    if "RESOURCE_EXHAUSTED" in text or "Out of memory" in text:
        return MemoryError()
    numbers = (number for number in _CURES if os.strerror(number) in text)
    return next((OSError(number, os.strerror(number)) for number in numbers), None)


def of_machine(error: BaseException, name: object = None) -> MachineError:
    """Converts an error of the machine to one line with the way out.

    Args:
      error: The error.
      name: Name of the file; None: the one in the error, if any.
    """
    if isinstance(error, MachineError):
        return error
    if not isinstance(error, OSError):
        place = f"{name}: " if name else ""
        return MachineError(f"{place}out of memory: free memory, and run the same command again")
    name = name or error.filename
    place, cure = f"{name}: " if name else "", _CURES[error.errno or 0]
    return MachineError(f"{place}{error.strerror}: {cure}, and run the same command again")
