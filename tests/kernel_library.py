"""The text of the kernels, compiled by the C compiler into a library of loops."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

COMPILER = next((found for name in ("cc", "gcc", "clang") if (found := shutil.which(name))), None)


@functools.cache
def library(text: str, defines: tuple[tuple[str, int], ...]) -> ctypes.CDLL:
    """The kernels of a text as a library."""
    name = hashlib.blake2b(repr((text, defines)).encode(), digest_size=8).hexdigest()
    folder = Path(tempfile.gettempdir()) / f"zmrs-kernels-{os.getuid()}"
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}.so"
    if not path.exists():
        assert COMPILER is not None
        fresh = path.with_suffix(f".{os.getpid()}")
        macros = [f"-D{name}={value}" for name, value in defines]
        flags = ["-x", "c", "-std=c11", "-O2", "-ffp-contract=off", "-fPIC", "-shared", *macros]
        made = subprocess.run(
            [COMPILER, *flags, "-o", str(fresh), "-", "-lm"],
            input=text, text=True, capture_output=True, check=False,
        )  # fmt: skip
        assert made.returncode == 0, made.stderr
        fresh.rename(path)
    return ctypes.CDLL(str(path))
