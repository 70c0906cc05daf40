"""From what the user typed to file names: files, folders, globs and lists of them."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from zmrs.errors import InputError

__all__ = [
    "SUFFIXES",
    "Named",
    "and_others",
    "expand",
    "expand_inputs",
    "natural_key",
    "unreadable",
    "without_duplicates",
]

SUFFIXES = tuple(s + c for s in (".fits", ".fit", ".fts") for c in ("", ".fz", ".gz"))


@dataclass(frozen=True, slots=True)
class Named:
    """One file of the expansion: found in a folder, or named by the user."""

    path: str
    from_directory: bool = False


def natural_key(text: str) -> tuple[tuple[int, int, str], ...]:
    """Sort key under which ``img2`` stands before ``img10``; upper and lower case are equal."""
    parts = re.split(r"([0-9]+)", text)
    keys = ((0, int(p), "") if p.isdecimal() else (1, 0, p.casefold()) for p in parts if p)
    return (*keys, (2, 0, text))


def _is_image_name(name: str) -> bool:
    """Whether a name found by scanning is an image; hidden files (``._x.fits``) never are."""
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")


def _from_directory(folder: str, recursive: bool) -> list[Named]:
    """Files of a folder in natural order, then those of its subfolders if asked."""
    found: list[Named] = []
    for here, folders, files in os.walk(folder):
        names = sorted(filter(_is_image_name, files), key=natural_key)
        found += [Named(os.path.join(here, name), True) for name in names]  # noqa: PTH118
        if not recursive:
            break
        folders[:] = sorted((f for f in folders if not f.startswith(".")), key=natural_key)
    if not found:
        raise InputError(
            f"{folder}: the folder holds no {', '.join(SUFFIXES[::3])} file; name another one"
            f"{'' if recursive else ', or add --recursive for its subfolders'}."
        )
    return found


def _from_glob(pattern: str) -> list[Named]:
    """Image files that match a pattern, in natural order."""
    matches = glob.glob(pattern, recursive=True)  # noqa: PTH207 (keeps the names as typed)
    names = [m for m in matches if _is_image_name(os.path.basename(m)) and os.path.isfile(m)]  # noqa: PTH113, PTH119
    if not names:
        raise InputError(f"{pattern}: no image matches; check the pattern and its folder.")
    return [Named(name) for name in sorted(names, key=natural_key)]


def _from_list(arg: str, recursive: bool) -> Iterator[list[Named] | Exception]:
    """Entries of an ``@list.txt``, each expanded on its own.

    Relative entries are looked for beside the list file first, since lists travel with their
    images, and in the working directory if they are not there.
    """
    listing = Path(arg[1:])
    try:
        lines = listing.read_text(encoding="utf-8-sig", errors="surrogateescape").splitlines()
    except OSError as error:
        yield unreadable(arg[1:], error)
        return
    entries = [line.strip() for line in lines if line.strip() and not line.strip().startswith("#")]
    if not entries:
        yield InputError(f"{arg[1:]}: the list names no file; write one name a line.")
    for entry in entries:
        beside = str(listing.parent / entry)
        is_there = os.path.exists(beside) or (glob.has_magic(entry) and glob.glob(beside))  # noqa: PTH110, PTH207
        yield _expand_one(beside if is_there else entry, recursive)


def unreadable(path: str, error: OSError | None = None) -> FileNotFoundError | InputError:
    """Error for a name behind which nothing readable stands."""
    if error is None or isinstance(error, FileNotFoundError):
        return FileNotFoundError(f"{path}: there is no such file; check the name.")
    return InputError(f"{path}: cannot be read ({error.strerror or error}); check its permissions.")


def _expand_one(arg: str, recursive: bool) -> list[Named] | Exception:
    """Files behind one argument that is not a list, or the error that says why there are none."""
    try:
        if os.path.isdir(arg):  # noqa: PTH112
            return _from_directory(arg, recursive)
        if os.path.exists(arg):  # noqa: PTH110 (before globbing: names may hold brackets)
            return [Named(arg)]
        return _from_glob(arg) if glob.has_magic(arg) else unreadable(arg)
    except InputError as error:
        return error


def expand(args: Sequence[str], recursive: bool) -> Iterator[Named | Exception]:
    """All files behind all arguments in job order, errors in their places."""
    for arg in map(os.fspath, args):
        parts = _from_list(arg, recursive) if arg.startswith("@") else [_expand_one(arg, recursive)]
        for part in parts:
            if isinstance(part, Exception):
                yield part
            else:
                yield from part


def without_duplicates(
    entries: Sequence[Named | Exception],
) -> tuple[list[Named | Exception], list[str]]:
    """Drop the second and later mentions of a file; return the rest and a warning.

    The inode number decides first because resolving every path costs 50 times as much; a hard
    link (same inode, other real path) stays.
    """
    kept: list[Named | Exception] = []
    again: list[str] = []
    seen: dict[tuple[int, int], set[str] | str] = {}
    for entry in entries:
        if isinstance(entry, Named) and _seen_before(entry.path, seen):
            again.append(entry.path)
        else:
            kept.append(entry)
    if not again:
        return kept, []
    return kept, [f"{and_others(again)}: named more than once, used once."]


def _seen_before(path: str, seen: dict[tuple[int, int], set[str] | str]) -> bool:
    """Whether the file was seen; remembers it.  ``seen`` holds a path until two share an inode."""
    try:
        status = os.stat(path)  # noqa: PTH116
    except OSError:
        return False
    inode = (status.st_dev, status.st_ino)
    known = seen.get(inode)
    if known is None:
        seen[inode] = path
        return False
    real_paths = {os.path.realpath(known)} if isinstance(known, str) else known
    seen[inode] = real_paths
    real = os.path.realpath(path)
    was_there = real in real_paths
    real_paths.add(real)
    return was_there


def and_others(names: Sequence[str], shown: int = 3) -> str:
    """Shorten a list of names to ``a, b, c and 7 others``."""
    text, more = ", ".join(names[:shown]), len(names) - shown
    return text if more <= 0 else f"{text} and {more} other{'s' if more > 1 else ''}"


def expand_inputs(args: Sequence[str], *, recursive: bool = False) -> tuple[list[str], list[str]]:
    """Turn files, folders, globs and ``@list.txt`` files into a list of file names.

    Parameters
    ----------
    args
        What the user typed.  Order is kept; within a folder or a glob names stand in natural
        order.  Folders and globs give only names that end in one of `SUFFIXES`; a file named
        outright is taken whatever its suffix.  List files hold one entry a line (file, folder
        or glob; blank lines and ``#`` lines are skipped), relative to the list file's folder,
        or else to the working directory.
    recursive
        Descend into subfolders.

    Returns
    -------
    paths, warnings
        Names without duplicates, and sentences about what was dropped.

    Raises
    ------
    FileNotFoundError
        A named file, or a list, does not exist.
    zmrs.errors.InputError
        An empty folder or list, or a glob without a match.
    """
    entries, notes = without_duplicates(list(expand(args, recursive)))
    paths: list[str] = []
    for entry in entries:
        if isinstance(entry, Exception):
            raise entry
        paths.append(entry.path)
    return paths, notes
