"""The engine, as Python sees it."""

from collections.abc import Callable, Sequence
from os import PathLike
from typing import Any, Self, final

from numpy import float32, float64, uint8, uint32
from numpy.typing import NDArray

__all__ = [
    "CoordGrid",
    "Input",
    "Job",
    "Layout",
    "PassStats",
    "Plan",
    "Source",
    "build_info",
    "fit",
    "run_pass_into_arrays",
    "run_pass_into_file",
]

def build_info() -> dict[str, str]:
    """Version, instruction set in use and build profile of the engine."""

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
    ) -> Source: ...
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
    ) -> Self: ...

@final
class Job:
    """Everything that determines the pixels."""

    def __new__(
        cls, shape: tuple[int, int, int], kernel: str, combine: str, inputs: Sequence[Input]
    ) -> Self: ...
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
    def terms(self) -> dict[str, int]: ...
    @property
    def projected_bytes(self) -> int: ...
    @property
    def plan(self) -> Plan: ...

@final
class PassStats:
    """What a pass found out."""

    @property
    def samples(self) -> list[int]: ...
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

def fit(
    job: Job,
    plan: Plan,
    reserved_bytes: int,
    held_bytes: int,
    planning_peak_bytes: int,
    into_arrays: bool,
) -> Layout:
    """Cut the output so that it fits the plan, whose workers, rows and bytes are upper bounds."""

def run_pass_into_file(
    job: Job,
    layout: Layout,
    path: str | PathLike[str],
    offsets: Sequence[int],
    *,
    write_back: bool = False,
    progress: Callable[[int, int], object] | None = None,
) -> PassStats:
    """Run a pass and write its planes into a file, each from its byte offset on."""

def run_pass_into_arrays(
    job: Job,
    layout: Layout,
    image: NDArray[float32],
    coverage: NDArray[float32],
    *,
    progress: Callable[[int, int], object] | None = None,
) -> PassStats:
    """Run a pass into arrays: the image (channels, height, width) and the coverage."""
