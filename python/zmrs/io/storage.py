"""Where the pixels of an HDU stand in its file, and how they are encoded."""

from __future__ import annotations

from dataclasses import dataclass

from zmrs.io.headers import Cards, GzipSource, Hdu, Source, UnusableError

__all__ = ["Storage", "storage_of"]

_BITPIX = frozenset({8, 16, 32, 64, -32, -64})
_BAYER = ("RGGB", "GRBG", "GBRG", "BGGR")


@dataclass(frozen=True, slots=True)
class Storage:
    """Where the pixels of one input stand and how they are encoded.

    Attributes
    ----------
    path
        The file, as the user gave it.
    hdu
        Index of the HDU (0 is the primary).
    offset
        Byte offset of the first data byte in the *uncompressed* file; without use when
        ``compressed``.
    bitpix
        8, 16, 32, 64, -32 or -64; of the image itself when it is tile-compressed.
    channels, height, width
        Shape after axes of length 1 were dropped; ``channels`` is 1 for a 2-D image.
    bscale, bzero
        Physical value = ``bzero + bscale * stored``.
    blank
        Stored value (before scaling) that means "no data"; None if there is none, and always
        None for floating-point pixels, where NaN says it.
    compressed
        True for tile-compressed images and gzipped files, whose bytes cannot be read in place.
    bayer
        Filters of a raw colour frame, those of the first two pixels of the first stored row and
        then of the second: ``RGGB``, ``GRBG``, ``GBRG`` or ``BGGR``; None for others.
    """

    path: str
    hdu: int
    offset: int
    bitpix: int
    channels: int
    height: int
    width: int
    bscale: float = 1.0
    bzero: float = 0.0
    blank: int | None = None
    compressed: bool = False
    bayer: str | None = None

    @property
    def colours(self) -> int:
        """Channels of the image that the stored ones make."""
        return self.channels if self.bayer is None else 3

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.height, self.width


def storage_of(
    path: str, hdu: Hdu, shape: tuple[int, int, int], source: Source
) -> tuple[Storage, list[str]]:
    """Where the pixels of an image of `shape` (channels, height, width) stand, and warnings.

    Raises
    ------
    UnusableError
        They are not all there, or not decodable.
    """
    if hdu.bitpix not in _BITPIX:
        raise UnusableError(f"its BITPIX {hdu.bitpix} is not one of FITS", "leave it out")
    _check_length(hdu, source)
    bscale, bzero = hdu.cards.number("BSCALE"), hdu.cards.number("BZERO")
    if bscale == 0:
        raise UnusableError("its BSCALE is 0", "repair the header or leave it out")
    blank, notes = _blank(hdu)
    bayer, more_notes = _filters(hdu.cards, shape)
    storage = Storage(
        path=path,
        hdu=hdu.index,
        offset=hdu.data_offset,
        bitpix=hdu.bitpix,
        channels=shape[0],
        height=shape[1],
        width=shape[2],
        bscale=1.0 if bscale is None else bscale,
        bzero=0.0 if bzero is None else bzero,
        blank=blank,
        compressed=hdu.is_tiled or isinstance(source, GzipSource),
        bayer=bayer,
    )
    return storage, notes + more_notes


def _filters(cards: Cards, shape: tuple[int, int, int]) -> tuple[str | None, list[str]]:
    """Filters of a raw colour frame, in the order in which its pixels are stored.

    ``BAYERPAT`` names those at the top left of the picture, `XBAYROFF` and `YBAYROFF` where that is
    in the pattern; the last stored row is the top where ``ROWORDER`` is ``BOTTOM-UP``.
    """
    named, (channels, height, width) = cards.string("BAYERPAT"), shape
    if named is None or channels > 1 or min(height, width) < 2:
        return None, []
    pattern = named.upper()
    if pattern not in _BAYER:
        return None, [f"BAYERPAT {named!r} is no order of filters; read as one without colour."]
    dx, dy = (cards.integer(keyword) or 0 for keyword in ("XBAYROFF", "YBAYROFF"))
    is_upright = (cards.string("ROWORDER") or "").upper() != "BOTTOM-UP"
    rows = (0, 1) if is_upright else (height - 1, height - 2)
    stored = (pattern[2 * ((y + dy) % 2) + (x + dx) % 2] for y in rows for x in (0, 1))
    return "".join(stored), []


def _check_length(hdu: Hdu, source: Source) -> None:
    """Compare what the header promises with what the file holds; missing padding is no harm."""
    end = hdu.data_offset + hdu.data_bytes
    if isinstance(source, GzipSource):
        missing = source.missing_bytes(end)
    else:
        missing = end - (end if source.size_bytes is None else source.size_bytes)
    if missing > 0:
        raise UnusableError(
            f"truncated: header promises {end} bytes, the file has {end - missing}",
            "copy the file again or leave it out",
        )


def _blank(hdu: Hdu) -> tuple[int | None, list[str]]:
    """BLANK of an integer image.

    The standard wants an integer; ``-32768.0`` is met (HiPS tiles) and plainly means -32768.
    """
    keyword = "ZBLANK" if hdu.is_tiled and hdu.cards.text("BLANK") is None else "BLANK"
    found = hdu.cards.text(keyword)
    if hdu.bitpix < 0 or found is None:
        return None, []
    blank = hdu.cards.integer(keyword)
    if blank is None:
        return None, [f"{keyword} is not an integer ({found[0]!r}) and is ignored."]
    if found[0].lstrip("+-").isdecimal():
        return blank, []
    return blank, [f"{keyword} {found[0]!r} is not an integer; read as {blank}."]
