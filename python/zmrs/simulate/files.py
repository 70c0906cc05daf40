"""Frames as FITS files of every BITPIX, and tables of the truth."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from zmrs.errors import InputError
from zmrs.simulate.frames import FrameSpec, Image, render
from zmrs.simulate.sky import Sky
from zmrs.simulate.wcs import direction_of_y

if TYPE_CHECKING:
    from astropy.io.fits import Header

__all__ = ["write_frames", "write_truth"]

FIRST_EXPOSURE = datetime(2026, 1, 15, 20, 0, 0, tzinfo=UTC)


def write_frames(
    folder: str | Path,
    sky: Sky,
    specs: Sequence[FrameSpec],
    *,
    bitpix: int = -32,
    prefix: str = "frame",
    seed: int = 0,
    object_name: str = "SIMULATED",
    truth: bool = True,
) -> list[Path]:
    """Expose the frames one after the other and write each as a FITS file.

    Parameters
    ----------
    folder
        Is made if it does not exist; files of the same names are replaced.
    sky, specs
        What is seen, and how by each frame.
    bitpix
        -32, -64: floating point, dead pixels NaN.  16: unsigned camera counts (BZERO 32768),
        clipped to 1..65535 adu, dead pixels BLANK.  32: steps of 1/256 adu (BSCALE), BLANK.
        8: the frame's own range in 254 steps (BSCALE and BZERO), BLANK.
    prefix
        Files are ``<prefix>_0001.fits`` and so on.
    seed
        Frame i is rendered with the seed (seed, i).
    object_name
        Value of OBJECT.
    truth
        Also write the truth tables (`write_truth`).

    Returns
    -------
    list of Path
        The frames, in order.  At most one of them is in memory at a time.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    start = FIRST_EXPOSURE
    for i, spec in enumerate(specs):
        stored, scaling = _stored(render(sky, spec, (seed, i)), bitpix)
        header = _frame_header(spec, stored, bitpix, scaling)
        header["OBJECT"] = object_name
        header["DATE-OBS"] = start.strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3]
        paths.append(folder / f"{prefix}_{i + 1:04d}.fits")
        _write_fits(paths[-1], header, stored)
        start += timedelta(seconds=spec.exptime_s + 5.0)
    if truth:
        write_truth(folder, sky, specs, [p.name for p in paths])
    return paths


def _stored(image: Image, bitpix: int) -> tuple[NDArray[Any], dict[str, float]]:
    """Return the array as FITS stores it (big-endian) and the cards that decode it."""
    if bitpix in (-32, -64):
        return image.astype(">f4" if bitpix == -32 else ">f8"), {}
    dead = np.isnan(image)
    if bitpix == 16:
        zero, step, low, high, blank, kind = 32768.0, 1.0, -32767, 32767, -32768, ">i2"
    elif bitpix == 32:
        zero, step, low, high, blank, kind = 0.0, 2.0**-8, -(2**31) + 1, 2**31 - 1, -(2**31), ">i4"
    elif bitpix == 8:
        least, greatest = (0.0, 0.0) if dead.all() else (np.nanmin(image), np.nanmax(image))
        zero, step = float(least), max(float(greatest - least) / 254.0, 1e-6)
        low, high, blank, kind = 0, 254, 255, "u1"
    else:
        raise InputError(f"BITPIX {bitpix} is not written here; choose 8, 16, 32, -32 or -64")
    counts = np.rint((image.astype(np.float64) - zero) / step)
    np.clip(counts, low, high, out=counts)
    counts[dead] = blank
    return counts.astype(kind), {"BZERO": zero, "BSCALE": step, "BLANK": blank}


def _frame_header(
    spec: FrameSpec, stored: NDArray[Any], bitpix: int, scaling: dict[str, float]
) -> Header:
    from astropy.io.fits import Header  # noqa: PLC0415

    header = Header()
    header["SIMPLE"], header["BITPIX"], header["NAXIS"] = True, bitpix, stored.ndim
    for axis, length in enumerate(reversed(stored.shape), start=1):
        header[f"NAXIS{axis}"] = length
    header.update(scaling)
    header["BUNIT"] = "adu"
    header["FILTER"] = "RGB" if spec.channels == 3 else "L"
    header["EXPTIME"] = (spec.exptime_s, "[s]")
    header["INSTRUME"], header["TELESCOP"] = "zmrs-sim", "simulated"
    header["GAIN"] = (spec.gain, "factor on celestial light")
    header["FWHM"] = (spec.psf_fwhm_px, "[px]")
    header["ORIGIN"] = "zmrs.simulate"
    # The WCS goes last and keeps every digit of its own; relax lets the SIP cards through.
    header.extend(spec.wcs.to_header(relax=True), update=True)
    return header


def _write_fits(path: Path, header: Header, stored: NDArray[Any]) -> None:
    """Write header and data as they are: astropy would rescale integers with BZERO on its way."""
    with path.open("wb") as file:
        file.write(header.tostring(padding=True).encode("ascii"))
        stored.tofile(file)
        file.write(b"\0" * (-stored.nbytes % 2880))


def write_truth(
    folder: str | Path, sky: Sky, specs: Sequence[FrameSpec], names: Sequence[str] | None = None
) -> tuple[Path, Path]:
    """Write what is true: ``truth_stars.ecsv`` and ``truth_frames.ecsv``.

    Parameters
    ----------
    folder
        An existing folder.
    sky, specs
        As rendered.
    names
        File names of the frames.

    Returns
    -------
    tuple of Path
        Stars: ``ra, dec`` (deg), ``flux, flux_r, flux_g, flux_b`` (adu).  Frames: ``name, ra, dec,
        rotation`` (deg, of +y), ``gain``, ``sky_0..`` (adu), ``grad_x, grad_y`` (adu/px), ``noise``
        (adu), ``fwhm`` (px).
    """
    from astropy.table import Table  # noqa: PLC0415

    red, green, blue = sky.channel_flux(3)
    stars = Table(
        [sky.star_ra_deg, sky.star_dec_deg, sky.star_flux, red, green, blue],
        names=("ra", "dec", "flux", "flux_r", "flux_g", "flux_b"),
        units=("deg", "deg", "adu", "adu", "adu", "adu"),
    )
    n_channels = max((s.channels for s in specs), default=1)
    columns = ["name", "ra", "dec", "rotation", "gain"]
    columns += [f"sky_{c}" for c in range(n_channels)] + ["grad_x", "grad_y", "noise", "fwhm"]
    units = ["", "deg", "deg", "deg", ""] + ["adu"] * n_channels + ["adu/pix"] * 2 + ["adu", "pix"]
    labels = names if names is not None else [str(i) for i in range(len(specs))]
    rows = [_truth_row(n, s, n_channels) for n, s in zip(labels, specs, strict=True)]
    frames = Table(rows=rows or None, names=columns)
    for column, unit in zip(columns, units, strict=True):
        frames[column].unit = unit or None
    paths = Path(folder) / "truth_stars.ecsv", Path(folder) / "truth_frames.ecsv"
    for table, path in zip((stars, frames), paths, strict=True):
        table.write(path, format="ascii.ecsv", overwrite=True)
    return paths


def _truth_row(name: str, spec: FrameSpec, n_channels: int) -> tuple[Any, ...]:
    height, width = spec.shape
    x, y = (width - 1) / 2.0, (height - 1) / 2.0
    ra, dec = (float(v) for v in spec.wcs.all_pix2world(x, y, 0))
    levels = itertools.islice(itertools.cycle(spec.sky_levels().tolist()), n_channels)
    pointing = (name, ra, dec, direction_of_y(spec.wcs, x, y), spec.gain)
    return (*pointing, *levels, *spec.sky_gradient, spec.noise_sigma, spec.psf_fwhm_px)
