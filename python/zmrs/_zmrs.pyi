"""The engine, as Python sees it."""

from collections.abc import Callable, Sequence
from os import PathLike
from typing import Any, Self, final

from numpy import float32, float64, int16, int64, uint8, uint32
from numpy.typing import NDArray

from zmrs.backends.base import CoverageDevice, Device

__all__ = [
    "CoordGrid",
    "Findings",
    "GainSolution",
    "Input",
    "InputGains",
    "Job",
    "LatticeSamples",
    "Layout",
    "Marks",
    "OffsetSolution",
    "PassStats",
    "Plan",
    "Planes",
    "Source",
    "Step",
    "Windows",
    "blank_low_coverage",
    "blank_low_coverage_of_arrays",
    "blur_coverage",
    "build_info",
    "copy_planes",
    "describe_blur",
    "describe_input",
    "describe_job",
    "fit",
    "give_back",
    "grid_of_input",
    "lattice_bytes",
    "luminance_percentile",
    "measure_gains",
    "run_pass_into_arrays",
    "run_pass_into_files",
    "sample_lattice",
    "solve_entries",
    "survey_bytes",
    "survey_inputs",
    "write_depth",
]

def build_info() -> dict[str, str]:
    """Version, instruction set in use and build profile of the engine."""

def give_back() -> None:
    """Give memory that was freed back to the system, as every call of the engine does."""

@final
class Plan:
    """Resources of a job, immutable."""

    def __new__(cls, **fields: Any) -> Self: ...
    @classmethod
    def from_phase5(cls, source: Any) -> Plan: ...
    @classmethod
    def from_json(cls, text: str) -> Plan: ...
    def replace(self, **fields: Any) -> Plan: ...
    def to_dict(self) -> dict[str, Any]: ...
    def to_json(self) -> str: ...
    def figures(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def cpu_workers(self) -> int: ...
    @property
    def use_memmap(self) -> bool: ...
    @property
    def max_chunk_bytes(self) -> int | None: ...
    @property
    def rows_per_chunk(self) -> int | None: ...
    @property
    def tiles_per_chunk(self) -> int | None: ...
    @property
    def use_gpu(self) -> bool: ...
    @property
    def gpu_rows_per_chunk(self) -> int | None: ...
    @property
    def gpu_max_chunk_bytes(self) -> int | None: ...
    @property
    def two_pass_coverage_threshold(self) -> float: ...
    @property
    def memory_bytes(self) -> int | None: ...
    @property
    def reasons(self) -> tuple[str, ...]: ...
    def __eq__(self, other: object, /) -> bool: ...
    def __ne__(self, other: object, /) -> bool: ...
    def __hash__(self) -> int: ...
    def __reduce__(self) -> tuple[Any, tuple[str]]: ...

@final
class CoordGrid:
    """Where output pixels fall in an input; see `zmrs.coordinates`."""

    def __new__(
        cls,
        origin: tuple[int, int],
        spacing: int,
        cells: tuple[int, int],
        frame: tuple[int, int],
        nodes: NDArray[float64],
    ) -> Self: ...
    def with_exact(
        self,
        numbers: NDArray[uint32],
        path: str | PathLike[str],
        bounds: NDArray[float64],
    ) -> CoordGrid: ...
    def at(
        self, x: NDArray[float64], y: NDArray[float64]
    ) -> tuple[NDArray[float64], NDArray[float64]]: ...
    def cells(self) -> NDArray[uint8]: ...
    @property
    def footprint(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """Columns and rows of the output that hold all cells with pixels of the frame.

        They may stick out of the output.
        """

    @property
    def spacing(self) -> int: ...
    @property
    def scratch_bytes(self) -> int: ...

@final
class Source:
    """The stored planes of one image."""

    @staticmethod
    def file(
        path: str | PathLike[str],
        offset: int,
        bitpix: int,
        shape: tuple[int, int, int],
        scale: tuple[float, float] = ...,
        blank: int | None = None,
        filters: tuple[str, float | None] | None = None,
    ) -> Source: ...
    @staticmethod
    def unpacked(
        path: str | PathLike[str],
        bitpix: int,
        shape: tuple[int, int, int],
        scale: tuple[float, float] = ...,
        blank: int | None = None,
        filters: tuple[str, float | None] | None = None,
    ) -> Source: ...
    @staticmethod
    def memory(
        array: NDArray[uint8],
        bitpix: int,
        shape: tuple[int, int, int],
        scale: tuple[float, float] = ...,
        blank: int | None = None,
    ) -> Source: ...
    @staticmethod
    def deferred(
        bitpix: int,
        shape: tuple[int, int, int],
        scale: tuple[float, float] = ...,
        blank: int | None = None,
        filters: tuple[str, float | None] | None = None,
    ) -> Source: ...
    @property
    def stored_bytes(self) -> int: ...
    def provide(self, array: NDArray[uint8]) -> None: ...

@final
class Input:
    """One image and what is known of it."""

    def __new__(
        cls,
        name: str,
        image: Source,
        grid: CoordGrid,
        *,
        weight: float = 1.0,
        gain: Sequence[float] | None = None,
        offset: Sequence[float] | None = None,
        weight_map: Source | None = None,
        map_kind: str = "weight",
        alpha_full: float = 1.0,
        border_px: tuple[int, int] = ...,
        feather_px: float = 0.0,
        zero_is_blank: bool = False,
        saturation: float | None = None,
        noise: Sequence[float] | None = None,
    ) -> Self: ...

@final
class Job:
    """Everything that determines the pixels."""

    def __new__(
        cls,
        shape: tuple[int, int, int],
        kernel: str,
        combine: str,
        inputs: Sequence[Input],
        *,
        kappa: tuple[float, float] = ...,
        winsor: tuple[float, float] = ...,
        together: bool = False,
        match_offsets: bool = False,
        match_gains: tuple[float, float, float, float] | None = None,
        most_offset: float = ...,
        two_pass: tuple[float, float, float, float] | None = None,
        variance: bool = False,
    ) -> Self: ...
    def with_photometry(
        self, gains: Sequence[Sequence[float]], offsets: Sequence[Sequence[float]]
    ) -> Job:
        """The same job with other gains and offsets: by input, and by channel."""

    def part(self, inputs: Sequence[int], columns: tuple[int, int], rows: tuple[int, int]) -> Job:
        """The job of some of the inputs, in this order, on a rectangle of the output.

        One pass, without matching; gains and offsets are kept.
        """

    @property
    def counts_rejected(self) -> bool:
        """Whether the combine counts the samples that it rejects, in planes of the output."""

    @property
    def has_variance(self) -> bool:
        """Whether the variance of each channel is found, in planes of the output."""

    @property
    def plane_bytes(self) -> int:
        """Bytes of a plane of the image."""

    @property
    def input_bytes(self) -> int: ...

@final
class Layout:
    """How a job is cut, and what it will hold and move."""

    @property
    def band_rows(self) -> int: ...
    @property
    def bands(self) -> int: ...
    @property
    def blocks(self) -> int: ...
    @property
    def read_bytes(self) -> int: ...
    @property
    def write_bytes(self) -> int: ...
    @property
    def samples(self) -> int: ...
    @property
    def sweeps(self) -> int:
        """Sweeps over the inputs in one pass."""

    @property
    def bounds_bytes(self) -> int:
        """Bytes of the scratch file that a pass of two sweeps needs; 0 otherwise."""

    @property
    def two_pass_bytes(self) -> int: ...
    @property
    def terms(self) -> dict[str, int]: ...
    @property
    def projected_bytes(self) -> int: ...
    @property
    def plan(self) -> Plan: ...

@final
class PassStats:
    """What a pass found out."""

    @property
    def reached(self) -> tuple[int, int]:
        """How far the pass has come: the sweep, and the first row that is not finished."""

    @property
    def samples(self) -> list[int]: ...
    @property
    def rejected(self) -> list[int]: ...
    @property
    def read_bytes(self) -> int: ...
    @property
    def files_opened(self) -> int: ...
    @property
    def workers(self) -> int: ...
    @property
    def ledger_peak(self) -> int: ...
    @property
    def chunk_peak(self) -> int: ...
    @property
    def replaced(self) -> int: ...

def fit(
    job: Job,
    plan: Plan,
    reserved_bytes: int,
    held_bytes: int,
    planning_peak_bytes: int,
    into_arrays: bool,
    whole: Job | None = None,
) -> Layout:
    """Cut the output so that it fits the plan, whose workers, rows and bytes are upper bounds.

    `job` may be a part of a `whole`, or combine what its parts come to.
    """

def run_pass_into_files(
    job: Job,
    layout: Layout,
    targets: Sequence[tuple[str | PathLike[str], int] | None],
    *,
    start: tuple[int, int] = ...,
    write_back: bool = False,
    marks: Marks | None = None,
    bounds: str | PathLike[str] | None = None,
    over: Planes | None = None,
    over_variance: Planes | None = None,
    epsilon: float = 0.0,
    device: Device | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> PassStats:
    """Run a pass and write its planes into files, each from a byte on; those of None are dropped.

    A `device` computes the rows, if there is one; what it raises stops the pass and is raised here.
    A pass of two sweeps makes a scratch file at `bounds`.  It begins at `start` (sweep, row), and
    when `progress` says True it pauses after the present band.
    """

def run_pass_into_arrays(
    job: Job,
    layout: Layout,
    image: NDArray[float32],
    coverage: NDArray[float32],
    *,
    counts: NDArray[int16] | None = None,
    variance: NDArray[float32] | None = None,
    write_back: bool = False,
    marks: Marks | None = None,
    bounds: str | PathLike[str] | None = None,
    device: Device | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> PassStats:
    """Run a pass into arrays: image (channels, height, width), coverage, counts, variance.

    Counts are the samples rejected below, by channel, and above: (2 * channels, height, width).
    The variance has the shape of the image.
    """

@final
class Windows:
    """The windows of a step.

    Places are addresses in the memory of the process, which stay until the step is finished.
    """

    @property
    def table(self) -> NDArray[int64]:
        """A row a window, in job order, of ten numbers.

        Input, first and past the last output column that it serves, x0, y0, x1, y1 of its pixels,
        where they begin among all, where its exact coordinates do, and whether it holds its samples
        as they are stored, as far as the frame goes, plane after plane, each from a whole
        single-precision value on.
        """

    @property
    def exact_cells(self) -> list[tuple[int, NDArray[uint32]]]:
        """Of windows with exact coordinates: the window, and the records of its cells in order."""

    @property
    def pixels(self) -> tuple[int, int]:
        """Place and number of all single-precision values that the windows take."""

    @property
    def exact(self) -> tuple[int, int]:
        """Place and number of all exact coordinates, double precision."""

@final
class Step:
    """What a device gets to compute.

    Places are addresses in the memory of the process, which stay until the step is finished.
    """

    @property
    def rect(self) -> tuple[int, int, int, int]:
        """Columns and rows of the output: x0, y0, x1, y1."""

    @property
    def is_first(self) -> bool: ...
    @property
    def is_last(self) -> bool: ...
    @property
    def bounds(self) -> list[int]:
        """Places of the bounds of the samples, single precision, as large as `rect`."""

    @property
    def planes(self) -> list[int]:
        """Places of the planes of the output, whose rows are as wide as the canvas."""

def describe_job(job: Job) -> dict[str, Any]:
    """What determines the pixels of a job, as plain values."""

def describe_blur(job: Job) -> dict[str, Any] | None:
    """What determines the work on the coverage of a job, as plain values.

    None where the job has no second pass, or one whose blur makes no sense.
    """

def describe_input(job: Job, number: int) -> dict[str, Any]:
    """What determines the samples of one input of a job, as plain values."""

def grid_of_input(
    job: Job, number: int
) -> tuple[NDArray[float64], NDArray[uint8], NDArray[uint32] | None]:
    """Where output pixels fall in one input of a job.

    Nodes (x and y in turn), cells (0 empty, 1 smooth, 2 exact), and the records of the exact ones,
    if there are any.
    """

@final
class Marks:
    """Where each input lies on the output, as a pass has left it in a scratch file."""

    def __new__(cls, path: str | PathLike[str]) -> Self: ...
    @staticmethod
    def reopen(path: str | PathLike[str], saved: str | PathLike[str]) -> Marks:
        """The marks at `path` as far as the file `saved` knows them."""

    def save(self, path: str | PathLike[str]) -> None:
        """Say in a file what has been written until now."""

@final
class Planes:
    """Finished planes: the channels of an image, then its coverage."""

    @staticmethod
    def in_files(width: int, targets: Sequence[tuple[str | PathLike[str], int]]) -> Planes: ...
    @staticmethod
    def in_memory(width: int, arrays: Sequence[NDArray[uint8]]) -> Planes: ...

@final
class InputGains:
    """The gains of the inputs, and how they came about."""

    @property
    def gains(self) -> list[float]: ...
    @property
    def scales(self) -> tuple[float, float]: ...

def measure_gains(
    job: Job,
    layout: Layout,
    planes: Planes,
    marks: Marks,
    place: tuple[str | PathLike[str], int],
    *,
    device: CoverageDevice | None = None,
) -> InputGains:
    """The gains that the coverage of pass one leads to.

    A plane of the canvas lies meanwhile at `place`, an existing file and a byte of it.  A `device`
    blurs and counts, if there is one; what it raises stops the work and is raised here.
    """

def write_depth(
    job: Job,
    layout: Layout,
    planes: Planes,
    marks: Marks,
    place: tuple[str | PathLike[str], int],
) -> None:
    """Write how many inputs cover each pixel of finished planes, as their marks say.

    A plane as in a FITS file, at `place`: an existing file and a byte of it.
    """

def luminance_percentile(job: Job, layout: Layout, planes: Planes, percent: float) -> float | None:
    """The exact percentile of the luminance where something covers; None where nothing does."""

def blur_coverage(planes: Planes, sigma_px: float, workers: int, out: NDArray[float64]) -> None:
    """Blur a coverage plane into an array: the mean coverage around every pixel."""

def blank_low_coverage(
    images: Sequence[tuple[str | PathLike[str], int]],
    coverage: tuple[str | PathLike[str], int],
    shape: tuple[int, int],
    part: float,
) -> None:
    """Empty the pixels of a finished pass whose coverage is less than a part of the greatest."""

def blank_low_coverage_of_arrays(
    images: NDArray[float32], coverage: NDArray[float32], part: float
) -> None:
    """The same for arrays: images (planes, height, width) and coverage (height, width)."""

def copy_planes(
    source: str | PathLike[str], target: str | PathLike[str], at: int, write_back: bool
) -> None:
    """Copy all of a file of finished planes into another file, from a byte on."""

@final
class LatticeSamples:
    """The samples of all inputs on the common lattice, and which inputs are compared."""

    @property
    def spacing(self) -> int: ...
    @property
    def count(self) -> int: ...
    @property
    def counts(self) -> list[int]: ...
    @property
    def bytes(self) -> int: ...
    @property
    def ledger_peak(self) -> int: ...
    def solve_gains(self) -> GainSolution:
        """Gains with which inputs show the same structure, by the rules of the job."""

    def solve_offsets(
        self,
        gains: Sequence[float] | None = None,
        matched: Sequence[Sequence[float]] | None = None,
    ) -> OffsetSolution:
        """Offsets that make the inputs agree after the given gains, one an input.

        Besides, the inputs have the gains that were matched, by input and channel.
        """

@final
class GainSolution:
    """Gains of all inputs, and how well they agree with what was measured."""

    @property
    def gains(self) -> list[list[float]]: ...
    @property
    def n_pairs(self) -> int: ...
    @property
    def pairs(self) -> list[tuple[int, int, list[float], list[float], list[float]]]: ...
    @property
    def rejected(self) -> list[tuple[int, int]]: ...
    @property
    def n_groups(self) -> int: ...
    @property
    def n_clipped(self) -> int: ...
    @property
    def rms(self) -> float: ...

@final
class OffsetSolution:
    """Offsets of all inputs, and how well they agree with what was compared."""

    @property
    def offsets(self) -> list[list[float]]: ...
    @property
    def n_pairs(self) -> int: ...
    @property
    def pairs(self) -> list[tuple[int, int, int, list[float]]]: ...
    @property
    def rejected(self) -> list[tuple[int, int]]: ...
    @property
    def greatest_residual(self) -> float: ...
    @property
    def components(self) -> list[int]: ...
    @property
    def n_clipped(self) -> int: ...
    @property
    def rms(self) -> float: ...

def lattice_bytes(job: Job, plan: Plan) -> int:
    """Bytes that sampling a job and matching its inputs lease at most."""

def solve_entries(
    inputs: int,
    entries: Sequence[tuple[int, int, float, float, float]],
    anchor: int,
    gains: bool,
) -> list[tuple[float, float]]:
    """Gain and offset of each input from straight lines between inputs that were fitted before.

    Rows of `entries` are inputs i and j, slope a, value at zero b and weight: j shows a * i + b.
    Weighted least squares for log(g_i / g_j) = log(a), and then for o_i - o_j = b * g_j; `anchor`,
    and the first input of every group without it, has gain 1 and offset 0.  Without `gains` all
    gains are 1.  ValueError for entries that make no sense.
    """

def sample_lattice(
    job: Job, plan: Plan, *, progress: Callable[[int, int], object] | None = None
) -> LatticeSamples:
    """Sample every input at the lattice on which inputs are compared.

    Progress is told as the bytes that were read and the inputs that are done.
    """

@final
class Findings:
    """What a look at an input has found."""

    @property
    def valid_share(self) -> float: ...
    @property
    def zero_share(self) -> float: ...
    @property
    def has_blank_zeros(self) -> bool: ...
    @property
    def full_share(self) -> float: ...
    @property
    def is_constant(self) -> bool: ...
    @property
    def noise(self) -> list[float]: ...
    @property
    def noise_without_zeros(self) -> list[float]: ...
    @property
    def map_greatest(self) -> float: ...

def survey_bytes(job: Job, asked: Sequence[tuple[int, bool, bool, bool]]) -> int:
    """Bytes of files that a look at some inputs reads, if nothing in them needs a second one.

    `asked` are inputs by number, and whether their pixels, their noise, and the greatest value of
    their weights matter.
    """

def survey_inputs(
    job: Job,
    plan: Plan,
    asked: Sequence[tuple[int, bool, bool, bool]],
    *,
    progress: Callable[[int], object] | None = None,
) -> tuple[list[Findings], int]:
    """Look at some inputs; what was found, in the order asked, and the bytes read.

    Progress is told as the inputs that are done.
    """
