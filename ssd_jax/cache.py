"""The cache folder for downloads, prepared data and compiled programs of any user.

Compiled programs are native code, so no other user may write there: a folder below the temporary
one, where everybody may make folders, has to be this user's own.
"""

import contextlib
import functools
import grp
import os
import pwd
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ssd_jax import console, errors

_AT_HOME = "~/.cache/ssd_jax"
_WAY_OUT = "set SSD_JAX_CACHE, or --config.data.cache_dir, to a folder of your own"


def default() -> str:
    """The variable `SSD_JAX_CACHE`, else a folder of the home; else one below the temporary folder.

    Containers run under user ids that have no name and no home, or a home that is not writable.
    """
    given = os.environ.get("SSD_JAX_CACHE")
    if given:
        return given
    home = _home()
    at_home = home is not None and _can_be_written(home / Path(_AT_HOME).relative_to("~"))
    return _AT_HOME if at_home else str(_temporary())


def folder(place: str | os.PathLike[str]) -> Path:
    """Creates the cache folder if it does not exist.

    Args:
      place: Folder from `default` or the user, possibly with ~.

    Returns:
      Its absolute path.

    Raises:
      UserError: If it cannot be created, or is one below the temporary folder that others may write
        to.
    """
    try:
        path = Path(place).expanduser().absolute()
    except RuntimeError as error:
        raise errors.UserError(f"{place}: there is no home directory; {_WAY_OUT}") from error
    own = _temporary()
    try:
        if path == own:
            with contextlib.suppress(FileExistsError):
                path.mkdir(mode=0o700, parents=True)
            _check_own(path)
            _say(path)
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise errors.UserError(
            f"{path}: the cache cannot be written there ({error.strerror}); name another folder"
        ) from error
    return path


@contextlib.contextmanager
def users_without_names() -> Iterator[None]:
    """Within its `with`, who has no entry in the system's tables is called by number.

    Libraries ask for the name of a file's owner, which a container may not know.
    """
    users, groups = pwd.getpwuid, grp.getgrgid
    _replace(pwd, "getpwuid", _or_number(users, _nameless_user))
    _replace(grp, "getgrgid", _or_number(groups, _nameless_group))
    try:
        yield
    finally:
        _replace(pwd, "getpwuid", users)
        _replace(grp, "getgrgid", groups)


_replace = setattr


def _or_number(find: Callable[[int], Any], make: Callable[[int], Any]) -> Callable[[int], Any]:
    def found(number: int) -> Any:
        try:
            return find(number)
        except KeyError:
            return make(number)

    return found


def _nameless_user(number: int) -> pwd.struct_passwd:
    return pwd.struct_passwd((str(number), "x", number, number, "", "/", ""))


def _nameless_group(number: int) -> grp.struct_group:
    return grp.struct_group((str(number), "x", number, []))


def _home() -> Path | None:
    try:
        return Path.home()
    except RuntimeError:
        return None


def _can_be_written(path: Path) -> bool:
    """Whether a folder can be written to, or made."""
    there = next((place for place in (path, *path.parents) if os.path.lexists(place)), path)
    return os.path.isdir(there) and os.access(there, os.W_OK | os.X_OK)


def _temporary() -> Path:
    """This user's folder below the temporary one, perhaps not made yet."""
    try:
        return Path(tempfile.gettempdir(), f"ssd_jax-{os.geteuid()}").absolute()
    except FileNotFoundError as error:
        raise errors.UserError(
            f"there is no home and no temporary folder to write to; {_WAY_OUT}"
        ) from error


def _check_own(path: Path) -> None:
    """Rejects a folder that another user created or may write to."""
    found = path.lstat()
    shared = found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or shared:
        raise errors.UserError(
            f"{path}: is no folder of user {os.geteuid()} alone, so programs in it may be "
            f"anybody's; remove it, or {_WAY_OUT}"
        )


@functools.cache
def _say(path: Path) -> None:
    console.warn(f"no home directory that can be written to: the cache is {path}; {_WAY_OUT}")
