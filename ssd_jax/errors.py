"""What ends a script without a traceback: a mistake to mend, or a run to go on with."""

TRY_AGAIN = 75
"""Exit status of a run that the same command goes on with (EX_TEMPFAIL of sysexits.h)."""


class UserError(ValueError):
    """A mistake in a file, a field or a value that the user can mend.

    Its message is one line that names the file, field or value and the way out. The scripts print
    that line and exit with status 2; every other exception keeps its traceback.
    """


class StoppedError(BaseException):
    """A run was told to stop and has saved its state: the scripts exit with `TRY_AGAIN`.

    Like KeyboardInterrupt it is no Exception, so that nothing on its way takes it for a failure.
    """
