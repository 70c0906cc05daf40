"""Who may import whom, and where bytes may be counted."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from child import run_code

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "python" / "zmrs"
MODULES = {
    ".".join(("zmrs", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(
        ".__init__"
    ): path
    for path in sorted(PACKAGE.rglob("*.py"))
}


def imports_of(path: Path, *, at_import: bool) -> Iterator[str]:
    """Modules that a file imports; with ``at_import`` only those that importing it brings."""
    pending: list[ast.AST] = [ast.parse(path.read_text())]
    while pending:
        node = pending.pop()
        if at_import and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            pending += node.orelse
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            assert node.module is not None
            yield node.module
            yield from (
                full for alias in node.names if (full := f"{node.module}.{alias.name}") in MODULES
            )
        pending += ast.iter_child_nodes(node)


def reached(module: str, *, at_import: bool) -> set[str]:
    """All modules that importing one brings, directly or through others of zmrs."""
    found: set[str] = set()
    pending = [module]
    while pending:
        name = pending.pop()
        if name in found:
            continue
        found.add(name)
        if name in MODULES:
            pending += imports_of(MODULES[name], at_import=at_import)
    return found


def outsiders(modules: set[str]) -> set[str]:
    return {name.split(".")[0] for name in modules}


HEAVY = {"astropy", "cupy", "numpy", "psutil", "scipy", "reproject", "click"}


@pytest.mark.parametrize("module", ["zmrs.gpu_safety", "zmrs.memory", "zmrs.settings"])
def test_the_plan_is_arithmetic_on_values(module: str) -> None:
    brought = reached(module, at_import=False)
    assert not outsiders(brought) & HEAVY
    assert {name for name in brought if name.startswith("zmrs")} <= {
        "zmrs.gpu_safety", "zmrs.memory", "zmrs.settings", "zmrs.errors",
    }  # fmt: skip


def test_the_plan_knows_no_engine_but_its_own_class() -> None:
    """Besides, it hands on the look at the machine, which is `zmrs.probe`'s."""
    brought = {name for name in reached("zmrs.plan", at_import=True) if name.startswith("zmrs")}
    assert {name.split(".")[1] for name in brought - {"zmrs"}} == {
        "plan", "_zmrs", "errors", "gpu_safety", "limits", "memory", "probe", "settings",
    }  # fmt: skip
    tree = ast.parse(MODULES["zmrs.plan"].read_text())
    from_engine = [
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module == "zmrs._zmrs"
        for alias in node.names
    ]
    assert from_engine == ["Plan"]
    assert not outsiders(reached("zmrs.plan", at_import=True)) & HEAVY


def test_one_selector() -> None:
    """One function chooses the plan of the Two-Pass, and nobody else knows among which."""
    selectors, mentions = [], []
    for name, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("select_two_pass"):
                selectors.append(f"{name}.{node.name}")
            if isinstance(node, ast.Constant) and node.value == "parallel_plan_phase5":
                mentions.append(name)
            if isinstance(node, ast.Attribute) and node.attr == "parallel_plan_phase5":
                mentions.append(name)
    # The adapter's is another name for ours.
    assert set(selectors) == {
        "zmrs.plan.select_two_pass_plan",
        "zmrs.compat.zemosaic.select_two_pass_parallel_plan",
    }
    adapter = MODULES["zmrs.compat.zemosaic"].read_text()
    assert "return select_two_pass_plan(" in adapter
    assert mentions == ["zmrs.plan"]


def test_the_second_pass_asks_the_selector() -> None:
    """The plan that is logged in front of a second pass comes straight from the selector."""
    tree = ast.parse(MODULES["zmrs.post_stack"].read_text())
    (function,) = (
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and node.name == "two_pass"
    )
    plans = [
        ast.unparse(node.value.func)
        for node in ast.walk(function)
        if isinstance(node, ast.Assign)
        and isinstance(node.value, ast.Call)
        and ast.unparse(node.targets[0]) == "plan"
    ]
    assert plans == ["select_two_pass_plan"]
    calls = [ast.unparse(node) for node in ast.walk(function) if isinstance(node, ast.Call)]
    assert "log_plan(plan)" in calls


# Rows: who; columns: whom it may not reach, however indirectly, when it runs.
FORBIDDEN = {
    "zmrs.errors": ("zmrs.",),
    "zmrs.limits": ("zmrs.", "astropy", "numpy"),
    "zmrs.probe": ("zmrs.plan", "zmrs.pipeline", "zmrs.cli", "zmrs._zmrs", "astropy", "numpy"),
    "zmrs.forecast": ("zmrs.", "astropy", "numpy"),
    "zmrs.events": ("zmrs.pipeline", "zmrs.cli", "zmrs.io", "numpy", "astropy"),
    "zmrs.criterion": ("zmrs.pipeline", "zmrs.cli", "zmrs.io", "numpy", "astropy", "sep"),
    "zmrs.quality": ("zmrs.pipeline", "zmrs.cli", "zmrs.io", "zmrs.scan", "zmrs._zmrs", "astropy"),
    "zmrs.selection": ("zmrs.pipeline", "zmrs.prepare", "zmrs.cli", "zmrs.grid", "zmrs.plan"),
    "zmrs.config": ("zmrs.pipeline", "zmrs.cli", "zmrs.io", "numpy", "astropy"),
    "zmrs.io.output": ("zmrs.pipeline", "zmrs.cli", "zmrs.scan", "zmrs.plan", "zmrs._zmrs"),
    "zmrs.io.cards": ("zmrs.pipeline", "zmrs.cli", "zmrs.plan", "zmrs._zmrs"),
    "zmrs.scan": ("zmrs.pipeline", "zmrs.cli", "zmrs.plan", "zmrs._zmrs", "zmrs.grid"),
    "zmrs.solving": ("zmrs.pipeline", "zmrs.prepare", "zmrs.cli", "zmrs.plan", "zmrs._zmrs"),
    "zmrs.solving.programs": ("zmrs.scan", "numpy", "astropy"),
    "zmrs.solving.child": ("zmrs.scan", "zmrs.io", "numpy", "astropy"),
    "zmrs.grid": ("zmrs.pipeline", "zmrs.cli", "zmrs.plan", "zmrs._zmrs"),
    "zmrs.finished": ("zmrs.pipeline", "zmrs.prepare", "zmrs.result", "zmrs.cli", "zmrs.api"),
    "zmrs.backends.gpu": ("zmrs.pipeline", "zmrs.prepare", "zmrs.cli", "zmrs.plan", "cupy"),
    "zmrs.backends.coverage": ("zmrs.pipeline", "zmrs.prepare", "zmrs.cli", "zmrs.plan", "cupy"),
    "zmrs.backends.buffers": ("zmrs.pipeline", "zmrs.plan", "zmrs._zmrs", "cupy"),
    "zmrs.backends.choose": ("zmrs.pipeline", "zmrs.prepare", "zmrs.cli"),
    "zmrs.backends.ladder": ("zmrs.pipeline", "zmrs.prepare", "zmrs.cli", "zmrs.backends.cuda"),
    "zmrs.room": ("zmrs.pipeline", "zmrs.prepare", "zmrs.passes", "zmrs.cli"),
    "zmrs.prepare": ("zmrs.pipeline", "zmrs.passes", "zmrs.result", "zmrs.cli", "zmrs.api"),
    "zmrs.pipeline": ("zmrs.cli", "zmrs.api", "zmrs.simulate", "zmrs.report", "click", "rich"),
    "zmrs.api": ("zmrs.cli", "click", "rich"),
}


@pytest.mark.parametrize("module", FORBIDDEN)
def test_who_may_import_whom(module: str) -> None:
    brought = reached(module, at_import=False) - {module}
    bad = {
        name
        for name in brought
        for barred in FORBIDDEN[module]
        if (name == barred.rstrip(".") and not barred.endswith("."))
        or name.startswith(barred.rstrip(".") + ".")
    }
    assert not bad


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import zmrs", {"numpy", "astropy", "click", "psutil", "zmrs._zmrs"}),
        ("import zmrs; zmrs.Plan; zmrs.errors; zmrs.plan", {"numpy", "astropy", "click"}),
        ("import zmrs.cli", {"numpy", "astropy", "rich", "zmrs._zmrs"}),
        ("import zmrs.cli.commands", {"numpy", "astropy", "rich"}),
        ("import zmrs.api", {"astropy", "scipy", "reproject"}),
        ("import zmrs.pipeline", {"astropy", "scipy", "reproject", "PIL"}),
    ],
)  # fmt: skip
def test_imports_are_cheap(statement: str, absent: set[str]) -> None:
    outcome = run_code(f"import sys\n{statement}\nprint(*sys.modules)")
    assert outcome.status == 0, outcome.err
    assert not absent & set(outcome.out.split())


def test_everything_public_is_there() -> None:
    outcome = run_code("import zmrs\nfor name in zmrs.__all__: getattr(zmrs, name)")
    assert (outcome.status, outcome.err) == (0, "")


# ------------------------------------------------------------------------------------- the border


def test_the_border_is_a_table_of_contents() -> None:
    assert len((ROOT / "rust" / "src" / "lib.rs").read_text().splitlines()) <= 100


def test_only_the_border_knows_python() -> None:
    for path in (ROOT / "rust" / "core").rglob("*.rs"):
        if "target" not in path.parts:
            assert "pyo3" not in path.read_text(), path
    assert "pyo3" not in (ROOT / "rust" / "core" / "Cargo.toml").read_text()


# ----------------------------------------------------------------------------------------- bytes

# Bytes of pixels: item sizes, or a shape times 2, 4 or 8.
_BYTES = re.compile(
    r"\bitemsize\b|\bnbytes\b|\bgetsizeof\b|(?<!ctypes\.)\bsizeof\b"
    r"|\b(?:width|height|channels|planes|area|shape\[[01]\]|rows|columns)\s*\*\s*[248]\b"
    r"|(?<![\d.\w])[248]\s*\*\s*(?:width|height|channels|planes|area|rows|columns)\b"
)
# Where files are read and written their sizes matter; the simulator is no part of a job; the rows
# of a GPU chunk follow a rule that others made, and the memory of a device is not the process's.
_MAY_COUNT = (
    "backends/",
    "gpu_safety.py",
    "io/output.py",
    "io/headers.py",
    "io/window.py",
    "scan",
    "simulate",
    "report",
    "inputs.py",
)


def test_one_memory_formula() -> None:
    """Python shows the terms of the Rust core's formula and has none of its own."""
    found = []
    for path in MODULES.values():
        if str(path.relative_to(PACKAGE)).startswith(_MAY_COUNT):
            continue
        for number, line in enumerate(path.read_text().splitlines(), start=1):
            code = line.split("#")[0]
            if _BYTES.search(code):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()}")
    assert not found, "\n".join(found)


def test_rust_counts_bytes_where_it_should() -> None:
    """The loop and the kernels are handed buffers; how large these are is not their business."""
    core = ROOT / "rust" / "core" / "src"
    kernels = [path for name in ("resample", "coadd") for path in (core / name).rglob("*.rs")]
    for path in [core / "pass.rs", core / "reproject.rs", core / "parallel.rs", *kernels]:
        code = path.read_text().split("#[cfg(test)]")[0]
        # The exceptions: what the buffers of tiles and stacks take is said where they are made.
        if path.name not in ("tile.rs", "stack.rs"):
            assert not re.search(r"\bsize_of::<", code), path
