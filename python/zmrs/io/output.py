"""The output file: made under a temporary name, filled by the engine, renamed when complete."""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zmrs.errors import BudgetError, DiskFullError, OutputError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import TracebackType

    from astropy.io.fits import Header

__all__ = ["Image", "MosaicFile", "check_output", "check_scratch"]

_BLOCK = 2880
_CARD = 80
_SPARE_CARDS = 12
# Waiting for the disk would cost a short run more than making it again after a power cut.
_DURABLE_AFTER_S = 30.0
_SUFFIXES = (".fits", ".fit", ".fts")


def check_output(path: Path, inputs: Sequence[str], *, overwrite: bool) -> None:
    """Refuse an output that cannot be made, before any work.

    Raises
    ------
    OutputError
        The folder is missing or read-only, the file exists and `overwrite` is not given, or it
        is one of the inputs.
    """
    try:
        _check_place(path, inputs, overwrite=overwrite)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror}).") from error


def _check_place(path: Path, inputs: Sequence[str], *, overwrite: bool) -> None:
    folder = path.parent
    if path.suffix.lower() not in _SUFFIXES:
        raise OutputError(f"{path}: a mosaic is plain FITS; name it .fits, .fit or .fts.")
    if not folder.is_dir():
        raise OutputError(f"{path}: its folder does not exist; make it first.")
    if path.is_dir():
        raise OutputError(f"{path}: this is a folder; name a file in it.")
    if path.exists() and not path.is_file():
        raise OutputError(f"{path}: this is a device or a pipe; name a file.")
    for name in inputs:
        with contextlib.suppress(OSError):
            if path.samefile(name):
                raise OutputError(f"{path}: the output is one of the inputs; name another.")
    if path.exists() and not overwrite:
        raise OutputError(f"{path}: exists already; name another output or give --overwrite.")
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise DiskFullError(f"{path}: the disk is full; free some space.") from error
        raise OutputError(f"{path}: its folder cannot be written ({error.strerror}).") from error


def check_scratch(
    folder: str | Path | None,
    scratch_bytes: int,
    output: Path | None,
    output_bytes: int,
    *,
    held_bytes: int = 0,
) -> None:
    """Refuse a job whose scratch files will not fit, before any pixel is read.

    Parameters
    ----------
    folder
        Where they will be; None is the system's folder for temporary files.
    scratch_bytes
        What they will take.
    output, output_bytes
        The mosaic, if it will be a file, and its size: both may lie on one disk.
    held_bytes
        What an interrupted run has left of all that.

    Raises
    ------
    BudgetError
        There is less room.
    """
    place = Path(folder or tempfile.gettempdir())
    needed = scratch_bytes
    if output is not None and place.stat().st_dev == output.parent.stat().st_dev:
        needed += output_bytes
    needed -= min(held_bytes, needed)
    free = _free_bytes(place)
    if scratch_bytes and free is not None and free < needed:
        raise BudgetError(
            f"{place}: the job needs {(needed >> 20) + 1} MiB of disk there and {free >> 20} MiB "
            "are free; free some space or name another folder with --scratch."
        )


def _free_bytes(folder: Path) -> int | None:
    """Room on the disk of a folder; None where the system does not say."""
    try:
        status = os.statvfs(folder)
    except (AttributeError, OSError):
        return None
    return status.f_bavail * status.f_frsize


@dataclass(frozen=True)
class Image:
    """An image HDU of a mosaic.

    Attributes
    ----------
    header
        Its header.
    planes
        Planes of the shape of the mosaic.
    sample_bytes
        Size of a sample.
    """

    header: Header
    planes: int
    sample_bytes: int = 4


class MosaicFile:
    """A mosaic while it is written.

    A context manager that closes the file; whoever has named the temporary file removes it when
    there is no `commit`.

    Parameters
    ----------
    path, temporary
        The final name, and the one until then, in the same folder.
    shape
        (H, W) of all planes.
    images
        The image HDUs.  `commit` replaces the header of the first, once all is known, by one that
        may have a few cards more.
    goes_on
        Whether the temporary file is there, made by an interrupted run of the same job.

    Attributes
    ----------
    targets
        Where each plane lies: file and first byte, image by image.
    """

    def __init__(
        self,
        path: Path,
        temporary: Path,
        shape: tuple[int, int],
        images: Sequence[Image],
        *,
        goes_on: bool = False,
    ) -> None:
        self.path, self.temporary = path, temporary
        self._began = time.monotonic()
        headers, offsets, end = [], [], 0
        with _reported(path):
            self._file = temporary.open("r+b" if goes_on else "w+b")
        try:
            with _reported(path):
                # The first header names the plan, which may be another one now.
                stored = _stored_header(self._file) if goes_on else None
            for number, image in enumerate(images):
                spare = 0 if number else _SPARE_CARDS
                text = stored or _to_bytes(image.header, spare_cards=spare)
                stored = None
                headers.append((end, text))
                begin = end + len(text)
                plane_bytes = shape[0] * shape[1] * image.sample_bytes
                offsets += [begin + k * plane_bytes for k in range(image.planes)]
                end = begin + -(-image.planes * plane_bytes // _BLOCK) * _BLOCK
            self._header_bytes, self._end = len(headers[0][1]), end
            self.targets = [(temporary, offset) for offset in offsets]
            if not goes_on:
                self._check_space()
                with _reported(path):
                    self._file.truncate(end)
                    for at, text in headers:
                        self._file.seek(at)
                        self._file.write(text)
                    self._file.flush()
        except BaseException:
            self._file.close()
            raise

    def _check_space(self) -> None:
        """A disk that cannot hold the output is better found full now than hours later."""
        free = _free_bytes(self.path.parent)
        if free is not None and free < self._end:
            raise DiskFullError(
                f"{self.path}: the disk is full: {self._end >> 20} MiB are needed and "
                f"{free >> 20} MiB are free; free some space or name another folder."
            )

    def commit(self, primary: Header, tables: Sequence[Any]) -> None:
        """Finish the header, append the tables (HDUs), and give the file its final name."""
        header = _to_bytes(primary, size=self._header_bytes)
        with _reported(self.path):
            self._file.seek(0)
            self._file.write(header)
            self._file.seek(self._end)
            for table in tables:
                _append(self._file, table)
            # An interrupted commit may have left a longer file.
            self._file.truncate()
            self._file.flush()
            if time.monotonic() - self._began > _DURABLE_AFTER_S:
                os.fsync(self._file.fileno())
            self._file.close()
            self.temporary.replace(self.path)

    def __enter__(self) -> MosaicFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()
        # The engine knows the temporary name only, and people the final one.
        if isinstance(error, OutputError) and str(self.temporary) in str(error):
            message = str(error).replace(str(self.temporary), str(self.path))
            raise type(error)(message) from error.__cause__


def _stored_header(file: Any) -> bytes:
    """The first header of a file, to its last block."""
    text = b""
    while block := file.read(_BLOCK):
        text += block
        if any(block[k : k + _CARD].rstrip() == b"END" for k in range(0, _BLOCK, _CARD)):
            break
    return text


def _to_bytes(header: Header, *, spare_cards: int = 0, size: int | None = None) -> bytes:
    """A header as it stands in a file, with blank cards before its end to fill `size` bytes."""
    text: str = header.tostring(sep="", endcard=False, padding=False)
    if size is None:
        size = -(-(len(text) + (spare_cards + 1) * _CARD) // _BLOCK) * _BLOCK
    if len(text) + _CARD > size:
        raise ValueError("the final header has outgrown its place")
    return (text.ljust(size - _CARD) + "END".ljust(_CARD)).encode("ascii")


def _append(file: Any, table: Any) -> None:
    """Write an HDU at the present end of the file."""
    import io  # noqa: PLC0415

    from astropy.io import fits  # noqa: PLC0415  (imported long before, with astropy.wcs)

    # astropy writes whole HDU lists: the empty primary that it insists on is left out.
    buffer = io.BytesIO()
    fits.HDUList([fits.PrimaryHDU(), table]).writeto(buffer, output_verify="fix")
    file.write(buffer.getvalue()[_BLOCK:])


@contextlib.contextmanager
def _reported(path: Path) -> Iterator[None]:
    """System errors of writing as errors of zmrs."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFullError(
                f"{path}: the disk is full; free some space and run the command again."
            ) from error
        raise OutputError(f"{path}: cannot be written ({error.strerror}).") from error
