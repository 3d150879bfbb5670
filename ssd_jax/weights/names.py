"""Names of arrays in nested containers."""

_MOST = 2**22  # characters of all names; those of a network of 1,000 layers are some 60,000


class Names:
    """Joins the names in one file, up to a number of characters in all.

    In a file a container's name stands once, in memory before each name in it: a small file could
    ask for any amount.
    """

    def __init__(self) -> None:
        self._characters = 0

    def join(self, container: str, name: str, separator: str) -> str:
        """`container`, `separator` and `name`; the name alone where the container has none.

        Raises:
          ValueError: If all names together are longer than those of any network.
        """
        self._characters += len(container) + len(name)
        if self._characters > _MOST:
            raise ValueError(f"it claims names of more than {_MOST:,} characters together")
        return f"{container}{separator}{name}" if container else name
