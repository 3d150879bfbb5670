"""Limits on names of arrays and on the steps to read a file."""

_MOST = 2**22  # characters of all names; those of a network of 1,000 layers are some 60,000
LONGEST = 2**12  # characters of a name
_MOST_NAMES = (
    2**14
)  # of arrays and containers; a ResNet-101 with its optimizer and average has 3,000
_SHOWN = 100  # characters of a value in a message


class Names:
    """Joins the names in one file, up to a number of them and of characters in all.

    A file contains the name of a container once, memory once per name in it: a small file could
    ask for any amount.
    """

    def __init__(self) -> None:
        self._characters = self._names = 0

    def join(self, container: str, name: str, separator: str) -> str:
        """Joins `container`, `separator` and `name`; the name alone without a container.

        Raises:
          ValueError: If there are more names, or longer ones, than in any network.
        """
        self._names += 1
        self._characters += len(container) + len(name)
        if self._characters > _MOST or len(container) + len(name) > LONGEST:
            raise ValueError(f"it claims names of more than {_MOST:,} characters together")
        if self._names > _MOST_NAMES:
            raise ValueError(f"it claims more than {_MOST_NAMES:,} arrays")
        return f"{container}{separator}{name}" if container else name


class Budget:
    """Budget of steps to read a file: some formats can demand any number in a few bytes."""

    def __init__(self, most: int, what: str):
        """Nothing is spent yet.

        Args:
          most: Steps.
          what: Takes them, in words.
        """
        self._left, self._most, self._what = most, most, what

    def spend(self, steps: int = 1) -> None:
        """Uses up steps of the budget.

        Raises:
          ValueError: If fewer are left.
        """
        self._left -= steps
        if self._left < 0:
            raise ValueError(f"{self._what} takes more than {self._most:,} steps")


def shown(value: object) -> str:
    """A value of a file for a message: cut, and of a container its kind alone.

    Containers in a pickle may hold each other many times: to write one out could take for ever.
    """
    if isinstance(value, str | bytes):
        return repr(value[:_SHOWN])
    if isinstance(value, float | bool | None):
        return repr(value)
    if isinstance(value, int) and value.bit_length() < 256:
        return repr(value)
    return f"a value of type {type(value).__name__}"
