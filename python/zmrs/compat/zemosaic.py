"""The Two-Pass of ZeMosaic 4.5 under its own names and arguments, on arrays.

Its form is kept: mean, binary weights, background matching always; the blur is in single precision,
whose rounding decides which pixels of flat coverage count.  Gains are the reference's number for
number.  The second pass is the engine's, on the plan's workers, rows and bytes: a sample that
touches a masked pixel does not count, and offsets come from samples on a coarse lattice.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from zmrs import _zmrs, limits
from zmrs.config import MOST_SIGMA_PX
from zmrs.errors import BudgetError
from zmrs.placing import scratch_folder
from zmrs.plan import select_two_pass_plan
from zmrs.post_stack import log_gpu_refused, log_plan, log_request
from zmrs.settings import known, setting
from zmrs.two_pass import (
    DEFAULT_CLIP,
    THRESHOLD,
    coverage_renorm,
    mask_of,
    median_gain,
    plane_of,
    well_covered,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

__all__ = [
    "apply_two_pass_coverage_renorm_if_requested",
    "compute_per_tile_gains_from_coverage",
    "run_second_pass_coverage_renorm",
    "select_two_pass_parallel_plan",
]

log = logging.getLogger("zmrs")

_DEFAULT_SIGMA_PX = 50


@dataclass(frozen=True)
class _Tiles:
    """Tiles as they were given; `coverages` and `weights` may be None, or short."""

    images: Sequence[Any]
    wcss: Sequence[Any]
    coverages: Sequence[Any] | None
    weights: Sequence[Any] | None


def select_two_pass_parallel_plan(
    *, phase5_plan: Any, fallback_plan: Any, zconfig: Any = None
) -> Any:
    """`zmrs.plan.select_two_pass_plan` under its old name."""
    return select_two_pass_plan(
        phase5_plan=phase5_plan, fallback_plan=fallback_plan, config=zconfig
    )


def compute_per_tile_gains_from_coverage(
    tiles: Sequence[Any],
    tiles_wcs: Sequence[Any],
    final_wcs: Any,
    coverage_p1: Any,
    *,
    sigma_px: int,
    gain_clip: Any,
    logger: logging.Logger | None = None,
    use_gpu: bool = False,
    tiles_coverage: Sequence[Any] | None = None,
    parallel_plan: Any = None,
    cpu_workers: int | None = None,
    row_chunk_size: int | None = None,
    chunk_bytes_limit: int | None = None,
    progress_emitter: Callable[..., object] | None = None,
) -> list[float]:
    """Gains of tiles from the coverage of the first pass.

    Parameters
    ----------
    tiles, tiles_wcs
        (H, W) or (H, W, C) arrays, of which only the shape matters, and their WCS.
    final_wcs, coverage_p1
        Grid and coverage (H, W) of the first pass.
    sigma_px, gain_clip
        Blur in pixels (0 is none) and bounds of a gain.
    tiles_coverage
        Mask planes (H, W); one that is missing, None, or of another shape is all ones.
    parallel_plan
        An object, a mapping or a `zmrs.Plan`: its coverage threshold counts.
    logger
        Is warned of tiles that are of no use.
    use_gpu, cpu_workers, row_chunk_size, chunk_bytes_limit, progress_emitter
        Accepted; without effect on the result.

    Returns
    -------
    list of float
        1 for a tile that is of no use.

    Raises
    ------
    zmrs.errors.UsageError
        The coverage is no plane.
    ValueError
        Tiles and WCS differ in number.
    """
    del use_gpu, cpu_workers, row_chunk_size, chunk_bytes_limit, progress_emitter
    coverage = plane_of(coverage_p1)
    height, width = coverage.shape
    blurred = _reference_blur(coverage, _sigma(sigma_px))
    scales = well_covered(coverage, blurred, _threshold(parallel_plan))
    clip, gains = _clip(gain_clip), []
    with scratch_folder(None) as scratch:
        for number, (tile, wcs) in enumerate(zip(tiles, tiles_wcs, strict=True)):
            shape = np.shape(tile)[:2]
            try:
                grid = _grid_of(
                    wcs, shape, final_wcs, (height, width), partial(scratch, str(number))
                )
                plane = _mask_plane(_nth(tiles_coverage, number), shape)
                # One mask at a time: each is as large as the mosaic.
                gains.append(median_gain(mask_of(plane, grid, (height, width)), scales, clip))
            except Exception as error:
                (logger or log).warning("[TwoPass] the gain of tile %d is 1: %s", number, error)
                gains.append(1.0)
    return gains


def run_second_pass_coverage_renorm(
    tiles: Sequence[Any],
    tiles_wcs: Sequence[Any],
    final_wcs_p1: Any,
    coverage_p1: Any,
    shape_out: tuple[int, int],
    *,
    sigma_px: int,
    gain_clip: Any,
    logger: logging.Logger | None = None,
    use_gpu_two_pass: bool | None = None,
    tiles_coverage: Sequence[Any] | None = None,
    tile_weights: Sequence[float] | None = None,
    parallel_plan: Any = None,
    telemetry_ctrl: Any = None,
    debug_diag: Any = None,
) -> tuple[NDArray[np.float32], NDArray[np.float32]] | None:
    """Coadd tiles again, with gains from the coverage of the first pass.

    Parameters are those of `compute_per_tile_gains_from_coverage`; `tiles` are used as they are,
    NaN is invalid; `tile_weights` are factors on whole tiles; the plan's workers, rows and chunk
    bytes are upper bounds; the last two are without effect.

    Returns
    -------
    tuple or None
        Mosaic (H, W, C) with NaN where nothing covers, and coverage (H, W); None when there is
        nothing to do or something fails, which is logged.
    """
    del telemetry_ctrl, debug_diag
    logger = logger or log
    tiles = [] if tiles is None else list(tiles)
    if not tiles or final_wcs_p1 is None or coverage_p1 is None:
        return None
    log_request(_sigma(sigma_px), _clip(gain_clip), np.shape(coverage_p1), logger)
    log_plan(parallel_plan, logger)
    return _second_pass(
        _Tiles(tiles, tiles_wcs, tiles_coverage, tile_weights),
        (final_wcs_p1, shape_out),
        coverage_p1,
        parallel_plan,
        logger,
        sigma_px=sigma_px,
        gain_clip=gain_clip,
        use_gpu=bool(use_gpu_two_pass),
    )


def apply_two_pass_coverage_renorm_if_requested(
    final_mosaic_data: Any,
    final_mosaic_coverage: Any,
    *,
    two_pass_enabled: bool,
    two_pass_sigma_px: int,
    gain_clip_tuple: Any,
    final_output_wcs: Any,
    final_output_shape_hw: tuple[int, int],
    use_gpu_two_pass: bool,
    logger: logging.Logger | None,
    collected_tiles: Sequence[Any] | None = None,
    fallback_tile_loader: Callable[[], Any] | None = None,
    parallel_plan: Any = None,
    telemetry_ctrl: Any = None,
) -> tuple[Any, Any]:
    """Renormalise a mosaic by its coverage; whatever fails leaves it as it is.

    Parameters
    ----------
    final_mosaic_data, final_mosaic_coverage
        First pass: (H, W) or (H, W, C), and (H, W).
    two_pass_enabled
        False gives the first pass back.
    two_pass_sigma_px, gain_clip_tuple
        As for `compute_per_tile_gains_from_coverage`.
    final_output_wcs, final_output_shape_hw
        Its grid.
    collected_tiles
        Tuples ``(tile, wcs[, coverage[, weight]])``.
    fallback_tile_loader
        Called when there are none: gives lists of tiles, WCS, and maybe coverages and weights.
    parallel_plan
        The plan that the line in the log tells of.

    Returns
    -------
    tuple
        Mosaic and coverage.
    """
    first = (final_mosaic_data, final_mosaic_coverage)
    needed = (*first, final_output_wcs, final_output_shape_hw)
    if not two_pass_enabled or any(one is None for one in needed):
        return first
    logger = logger or log
    sigma, clip = _sigma(two_pass_sigma_px), _clip(gain_clip_tuple)
    log_request(sigma, clip, np.shape(final_mosaic_coverage), logger)
    log_plan(parallel_plan, logger)
    try:
        tiles = _tiles(collected_tiles, fallback_tile_loader)
    # They are somebody else's, and so is the loader: without tiles the first pass stays.
    except Exception as error:
        logger.warning("[TwoPass] the tiles cannot be used: %s", error)
        tiles = _Tiles([], [], None, None)
    if not tiles.images:
        logger.warning("[TwoPass] there are no tiles; the first pass is kept")
        return first
    second = _second_pass(
        tiles,
        (final_output_wcs, final_output_shape_hw),
        final_mosaic_coverage,
        parallel_plan,
        logger,
        sigma_px=sigma,
        gain_clip=clip,
        use_gpu=bool(use_gpu_two_pass),
    )
    if second is None:
        logger.warning("[TwoPass] there is no second pass; the first one is kept")
        return first
    image, coverage = second
    if np.ndim(final_mosaic_data) == 2:
        image = image[..., 0]
    if np.shape(image) != np.shape(final_mosaic_data) or coverage.shape != np.shape(first[1]):
        logger.warning("[TwoPass] the passes differ in shape; the first one is kept")
        return first
    merged, merged_coverage, part = coverage_renorm(first, (image, coverage))
    if not part:
        logger.warning("[TwoPass] the second pass is too dark everywhere; the first one is kept")
        return first
    logger.info("[TwoPass] merged (sigma=%g, clip=(%g, %g), fraction=%.4f)", sigma, *clip, part)
    return merged, merged_coverage


def _second_pass(
    tiles: _Tiles,
    output: tuple[Any, tuple[int, int]],
    coverage: Any,
    plan: Any,
    logger: logging.Logger,
    *,
    sigma_px: Any,
    gain_clip: Any,
    use_gpu: bool,
) -> tuple[NDArray[np.float32], NDArray[np.float32]] | None:
    """Mosaic and coverage of the second pass; None when something fails, which is logged."""
    log_gpu_refused(plan, is_asked=use_gpu, logger=logger)
    try:
        gains = compute_per_tile_gains_from_coverage(
            tiles.images,
            tiles.wcss,
            output[0],
            coverage,
            sigma_px=sigma_px,
            gain_clip=gain_clip,
            logger=logger,
            tiles_coverage=tiles.coverages,
            parallel_plan=plan,
        )
        return _coadd(tiles, output, gains, plan)
    # Tiles, WCS and plan are somebody else's and may be anything: then the first pass stays.
    except Exception as error:
        logger.warning("[TwoPass] the second pass failed: %s", error)
        return None


def _tiles(collected: Sequence[Any] | None, loader: Callable[[], Any] | None) -> _Tiles:
    """Tiles from whichever source has them, with masks and weights."""
    given = [tuple(item) for item in collected or ()]
    if not given and loader is not None:
        images, wcss, *others = loader()
        given = [
            (image, wcs, *(_nth(column, number) for column in others))
            for number, (image, wcs) in enumerate(zip(images, wcss, strict=True))
        ]
    tiles = [np.asarray(item[0], np.float32) for item in given]
    masks = [_nth(item, 2) for item in given]
    coverages = [
        _finite(tile) if mask is None else mask for tile, mask in zip(tiles, masks, strict=True)
    ]
    return _Tiles(tiles, [item[1] for item in given], coverages, [_nth(item, 3) for item in given])


def _finite(tile: NDArray[np.float32]) -> NDArray[np.float32]:
    """1 where any channel is finite."""
    finite = np.isfinite(tile if tile.ndim == 3 else tile[..., np.newaxis])
    return np.asarray(np.any(finite, axis=-1), np.float32)


def _nth(column: Sequence[Any] | None, number: int) -> Any:
    """An item of a list that may be short, or missing altogether."""
    return None if column is None or number >= len(column) else column[number]


def _coadd(
    tiles: _Tiles, output: tuple[Any, tuple[int, int]], gains: Sequence[float], plan: Any
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mean of the corrected tiles, backgrounds matched, weights binary."""
    final_wcs, (height, width) = output
    inputs, used = [], []
    with scratch_folder(None) as scratch:
        for number, (tile, wcs) in enumerate(zip(tiles.images, tiles.wcss, strict=True)):
            data = np.asarray(tile, np.float32)
            planes = data[np.newaxis] if data.ndim == 2 else np.moveaxis(data, -1, 0)
            shape = planes.shape[1:]
            grid = _grid_of(wcs, shape, final_wcs, (height, width), partial(scratch, str(number)))
            if grid is None:
                continue
            mask = _nth(tiles.coverages, number)
            is_mask = mask is not None and np.shape(mask) == shape
            inputs.append(
                _zmrs.Input(
                    f"tile {number}",
                    _source(planes),
                    grid,
                    weight=_weight(_nth(tiles.weights, number)),
                    weight_map=_source(plane_of(mask)[np.newaxis] > 0) if is_mask else None,
                )
            )
            used.append([gains[number]] * len(planes))
        channels = len(used[0]) if used else 1
        job = _zmrs.Job((channels, height, width), "bilinear", "mean", inputs)
        layout = _layout(job, plan, len(inputs))
        samples = _zmrs.sample_lattice(job, layout.plan)
        offsets = samples.solve_offsets([gain[0] for gain in used]).offsets
        image = np.empty((channels, height, width), np.float32)
        coverage = np.empty((height, width), np.float32)
        job = job.with_photometry(used, offsets)
        _zmrs.run_pass_into_arrays(job, layout, image, coverage)
    return np.moveaxis(image, 0, -1), coverage


def _layout(job: _zmrs.Job, plan: Any, n_inputs: int) -> _zmrs.Layout:
    """The cut of a job within a plan, as far as one of somebody else's can be kept."""
    processors = limits.usable_processors()
    own = _zmrs.Plan(
        cpu_workers=min(known(plan, "cpu_workers") or processors, max(processors, n_inputs)),
        rows_per_chunk=known(plan, "rows_per_chunk"),
        max_chunk_bytes=known(plan, "max_chunk_bytes"),
    )
    try:
        return _zmrs.fit(job, own, 0, 0, 0, True)
    except BudgetError:
        # Not even the smallest blocks: then those.
        smallest = own.replace(cpu_workers=1, rows_per_chunk=1, max_chunk_bytes=None)
        return _zmrs.fit(job, smallest, 0, 0, 0, True)


def _source(planes: NDArray[Any]) -> _zmrs.Source:
    stored = np.ascontiguousarray(planes, np.float32)
    channels, height, width = stored.shape
    return _zmrs.Source.memory(stored.reshape(-1).view(np.uint8), -32, (channels, height, width))


def _grid_of(
    wcs: Any, shape: tuple[int, int], final_wcs: Any, final_shape: tuple[int, int], scratch: Any
) -> _zmrs.CoordGrid | None:
    """Where output pixels fall in a tile; None where it does not touch the output."""
    from zmrs.coordinates import locate  # noqa: PLC0415  (brings astropy)

    found = locate((final_wcs.celestial, final_shape), (wcs.celestial, shape), scratch)
    return None if found is None else found.grid


def _mask_plane(mask: Any, shape: tuple[int, int]) -> NDArray[np.float32]:
    if mask is None or np.shape(mask) != shape:
        return np.ones(shape, np.float32)
    return plane_of(mask)


def _reference_blur(coverage: NDArray[np.float32], sigma: float) -> NDArray[np.float32]:
    """The normalised blur with the reference's roundings."""
    if sigma <= 0:
        return coverage
    from scipy.ndimage import gaussian_filter  # noqa: PLC0415  (late: 0.2 s)

    blurred = gaussian_filter(coverage, sigma, truncate=4.0)
    reach = gaussian_filter((coverage > 0).astype(np.float32), sigma, truncate=4.0)
    mean = np.divide(blurred, reach, out=np.zeros_like(blurred), where=reach > 0)
    return np.asarray(mean, np.float32)


def _sigma(value: Any) -> int:
    try:
        return min(max(int(value), 0), MOST_SIGMA_PX)
    except (TypeError, ValueError, OverflowError):
        return _DEFAULT_SIGMA_PX


def _clip(value: Any) -> tuple[float, float]:
    try:
        low, high = sorted(float(bound) for bound in value)
    except (TypeError, ValueError):
        return DEFAULT_CLIP
    return (low, high) if np.isfinite([low, high]).all() else DEFAULT_CLIP


def _weight(value: Any) -> float:
    """Anything that is no positive number counts as 1."""
    try:
        weight = float(value)
    except (TypeError, ValueError):
        return 1.0
    return weight if np.isfinite(weight) and weight > 0 else 1.0


def _threshold(plan: Any) -> float:
    """The reference honours a threshold of 0 from an object, but not from a mapping."""
    if isinstance(plan, Mapping):
        value = plan.get("two_pass_coverage_threshold") or plan.get("coverage_threshold")
    else:
        value = setting(plan, "two_pass_coverage_threshold")
    try:
        threshold = THRESHOLD if value is None else max(float(value), 0.0)
    except (TypeError, ValueError):
        return THRESHOLD
    return THRESHOLD if np.isnan(threshold) else threshold
