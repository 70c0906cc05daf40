"""The kernels are CUDA: its compiler takes them, and fuses nothing."""

from __future__ import annotations

import ctypes
import importlib.util
import re
from itertools import product
from pathlib import Path

import pytest

from zmrs.backends.coverage import FORMS
from zmrs.backends.cuda import OPTIONS
from zmrs.backends.gpu import METHODS, N_RUNNING, kernel_text, pass_text


@pytest.fixture(scope="module")
def compiler() -> ctypes.CDLL:
    found = importlib.util.find_spec("nvidia")
    folders = [] if found is None else list(found.submodule_search_locations or [])
    for path in (p for f in folders for p in Path(f).glob("cuda_nvrtc/lib/libnvrtc.so.*")):
        return ctypes.CDLL(str(path))
    pytest.skip("NOT RUN: CUDA's run-time compiler is not installed (extra dev)")


def assembly(compiler: ctypes.CDLL, architecture: str, text: str, **macros: int) -> str:
    """What becomes of the kernels of a text."""
    program, size = ctypes.c_void_p(), ctypes.c_size_t()
    made = compiler.nvrtcCreateProgram(
        ctypes.byref(program), text.encode(), b"kernels.cu", 0, None, None
    )  # fmt: skip
    assert made == 0
    words = [*OPTIONS, f"--gpu-architecture={architecture}"]
    words += [f"-D{name}={value}" for name, value in macros.items()]
    array = (ctypes.c_char_p * len(words))(*(word.encode() for word in words))
    status = compiler.nvrtcCompileProgram(program, len(words), array)
    compiler.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    compiler.nvrtcGetProgramLog(program, log)
    assert status == 0, log.value.decode()
    assert "error" not in log.value.decode()
    compiler.nvrtcGetPTXSize(program, ctypes.byref(size))
    ptx = ctypes.create_string_buffer(size.value)
    compiler.nvrtcGetPTX(program, ptx)
    compiler.nvrtcDestroyProgram(ctypes.byref(program))
    return ptx.value.decode()


def assert_rounds_as_the_engine(ptx: str, quotients: str = "f64") -> None:
    assert not re.search(r"\bfma\.|\bdiv\.approx|\bdiv\.full|\bsqrt\.approx|\.ftz\b", ptx)
    assert re.search(rf"\bdiv\.rn\.{quotients}\b", ptx)


_SOME = [
    *product(range(len(METHODS)), (2,), (1, 3), (0, 1)),
    *product((0, 7), (1, 4, 6), (3,), (1,)),
]


@pytest.mark.parametrize(("method", "taps", "channels", "saturates"), _SOME)
def test_they_compile(
    method: int, taps: int, channels: int, saturates: int, compiler: ctypes.CDLL
) -> None:
    macros = {"CHANNELS": channels, "TAPS": taps, "METHOD": method, "SATURATES": saturates}
    macros |= {"VARIANCE": saturates, "STRIP": 256}
    ptx = assembly(compiler, "compute_75", pass_text(METHODS[method]), **macros)
    entries = set(re.findall(r"\.entry (\w+)", ptx))
    combining = {"run"} if method < N_RUNNING else {"stack"}
    if METHODS[method] == "kappa-sigma-stream":
        combining = {"moments", "within"}
    assert entries == {"decode", "place_rows", "cover"} | combining
    assert_rounds_as_the_engine(ptx)


def test_other_generations_too(compiler: ctypes.CDLL) -> None:
    for architecture in ("compute_60", "compute_90", "compute_100"):
        macros = {"CHANNELS": 3, "TAPS": 6, "METHOD": 7, "SATURATES": 1, "VARIANCE": 1}
        macros["STRIP"] = 256
        text = pass_text(METHODS[macros["METHOD"]])
        assert_rounds_as_the_engine(assembly(compiler, architecture, text, **macros))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("architecture", ["compute_60", "compute_75", "compute_90", "compute_100"])
def test_those_of_the_coverage(form: str, architecture: str, compiler: ctypes.CDLL) -> None:
    macros = {"FORM": FORMS.index(form), "WAVES": 8, "SEGMENT": 1024, "BINS": 4096}
    macros["THREADS"] = 32
    ptx = assembly(compiler, architecture, kernel_text("coverage"), **macros)
    filtering = {"nothing": set(), "taps": {"columns_filter"}}
    filtering["waves"] = {"columns_begin", "columns_filter"}
    entries = set(re.findall(r"\.entry (\w+)", ptx))
    assert entries == {"rows_scale", "set_all", "count_leading", "count_within"} | filtering[form]
    # Without a blur the quotient of two singles is one, rounded the same either way.
    assert_rounds_as_the_engine(ptx, "f32" if form == "nothing" else "f64")
    # The states of the recurrences are in registers.
    assert ".local" not in ptx
    assert "atom" in ptx or "red." in ptx
