"""The files that a pattern matches, on this machine or in an object store."""

from __future__ import annotations

import glob
import os
import re
from pathlib import Path

from contracts.storage import StorageError, StoredObject, as_path, is_remote, object_store

Identity = tuple[str, int, int | str]
"""A file's full name, size, and time or version: changes when the file is rewritten."""
DATE, NUMBER = "{date}", "{span}"
DATE_PARTS = ("{YYYY}", "{MM}", "{DD}")
PLACEHOLDERS = re.compile("(" + "|".join(map(re.escape, (DATE, NUMBER, *DATE_PARTS))) + ")")
"""What stands for a span's date or number in data.events: only `dnc retrain` reads spans."""
_OF_FILE_SYSTEM = "lost+found"
"""A directory in the root of a volume that only the administrator may read."""


def matching(pattern: str) -> list[str]:
    """Names of the files that match, sorted; `**` descends.

    Raises:
        StorageError: a directory on the way cannot be read, or a name is not text.
    """
    if is_remote(as_path(pattern)):
        return sorted(found.url for found in _listed(pattern))
    if os.path.isfile(pattern):  # whatever characters its name has
        return [pattern]
    _require_rights(pattern)
    found = sorted(glob.glob(pattern, recursive=True))
    for name in found:
        _require_text(name)
    return found


def _require_text(name: str) -> None:
    """Refuses a name that no manifest can hold, such as an old one in Latin-1."""
    try:
        name.encode()
    except UnicodeEncodeError:
        raise StorageError(
            f"{os.fsencode(name)!r} is a file name that is not UTF-8: rename the file, or choose a pattern that does "
            "not match it"
        ) from None


def _require_rights(pattern: str) -> None:
    """Refuses a directory that a glob may not list and would skip: a missing day would go unnoticed."""
    path = Path(pattern)
    for parent, below in zip(path.parents, (path, *path.parents), strict=False):
        is_listed = glob.has_magic(below.name) or parent.name == "**"
        for folder in glob.glob(f"{parent}/", recursive=True):
            if Path(folder).name == _OF_FILE_SYSTEM:
                continue
            try:
                # With the dot, both need the right to search the directory, too.
                os.scandir(f"{folder}.").close() if is_listed else os.stat(f"{folder}.")
            except PermissionError as error:
                raise StorageError(
                    f"{folder} cannot be read ({error.strerror}), so files in it that match {pattern} would be missed: "
                    "grant the permission to read it, or choose a pattern that does not match it"
                ) from None


def _listed(pattern: str) -> list[StoredObject]:
    """`matching` for an object store."""
    store = object_store(pattern)
    is_name = glob.has_magic(pattern) and store.exists(pattern)
    return store.match(glob.escape(pattern) if is_name else pattern)


def identities(pattern: str) -> dict[str, Identity]:
    """Each matching file and its current identity, sorted by name."""
    if is_remote(as_path(pattern)):
        found = sorted(_listed(pattern), key=lambda stored: stored.url)
        return {stored.url: (stored.url, stored.size, stored.version) for stored in found}
    return {path: _file_identity(path) for path in matching(pattern)}


def _file_identity(path: str) -> Identity:
    try:
        status = os.stat(path)
    except FileNotFoundError:
        raise StorageError(
            f"{path} is listed, but there is no such file: if it is a link, fix or remove it; otherwise run again"
        ) from None
    return os.path.abspath(path), status.st_size, status.st_mtime_ns
