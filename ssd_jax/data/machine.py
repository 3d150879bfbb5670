"""Converts errors of tfds and array_record that the machine caused to MachineError."""

import contextlib
import errno
import os
from collections.abc import Iterator

from ssd_jax import errors

_TOLD_IN_WORDS = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES),
    *(errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO, errno.ESTALE),
)


@contextlib.contextmanager
def blaming(place: object) -> Iterator[None]:
    """Converts errors of libraries that the machine caused to MachineError.

    tfds and array_record report it only in the message, with errors of any type.
    """
    try:
        yield
    except errors.UserError:
        raise
    except Exception as error:
        trouble = _trouble(error, place)
        if trouble is None:
            raise
        raise trouble from error


def _trouble(error: BaseException | None, place: object) -> errors.MachineError | None:
    """Returns the MachineError for an error or its cause; None if the machine is not at fault."""
    while error is not None:
        if errors.is_of_machine(error):
            named = isinstance(error, errors.MachineError) or getattr(error, "filename", None)
            return errors.of_machine(error, None if named else place)
        for number in _TOLD_IN_WORDS:
            if os.strerror(number) in str(error):
                return errors.of_machine(OSError(number, os.strerror(number)), place)
        error = error.__cause__
    return None
