"""The one exception that means: the user can mend this."""


class UserError(ValueError):
    """A mistake in a file, a field or a value that the user can mend.

    Its message is one line that names the file, field or value and the way out. The scripts print
    that line and exit with status 2; every other exception keeps its traceback.
    """
