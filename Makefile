# One command language for people, hooks and CI. `make help` lists it.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# An interpreter's own packages must not leak into the environment of the project.
unexport PYTHONPATH PYTHONHOME CONDA_PREFIX

RUST_SOURCES := $(shell find rust -name '*.rs' -not -path '*/target/*') rust/Cargo.toml rust/core/Cargo.toml rust/Cargo.lock
EXTENSION    := $(VENV)/.extension

.DEFAULT_GOAL := help
.PHONY: help demo test test-memory lint format bench bench-giant docs clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

demo: $(EXTENSION)  ## simulate a sky, make its mosaic and previews in ./demo
	$(BIN)/zmrs demo -o demo

test: $(EXTENSION)  ## every test: Rust, Python, memory, real data (GPU tests where there is a GPU)
	cd rust && cargo test --release --workspace --exclude zmrs --quiet
	$(BIN)/python -m pytest -m "not bench"

test-memory: $(EXTENSION)  ## only the tests of the memory promise
	$(BIN)/python -m pytest -m memory

lint: $(EXTENSION)  ## format and style of both languages, types, stubs
	cd rust && cargo fmt --all --check
	cd rust && cargo clippy --release --all-targets --workspace -- -D warnings
	$(BIN)/ruff check python tests benchmarks
	$(BIN)/ruff format --check python tests benchmarks
	$(BIN)/mypy
	$(BIN)/python -m mypy.stubtest zmrs._zmrs --ignore-disjoint-bases

format: $(EXTENSION)  ## bring both languages into their form
	cd rust && cargo fmt --all
	$(BIN)/ruff format python tests benchmarks
	$(BIN)/ruff check --fix python tests benchmarks

bench: $(EXTENSION)  ## time the stages and whole commands; writes benchmarks/RESULTS.md
	$(BIN)/python benchmarks/run.py

bench-giant: $(EXTENSION)  ## gigapixels inside 256 MiB, checked; takes up to 33 GB of disk for a while
	$(BIN)/python benchmarks/run.py --giant

docs: $(EXTENSION)  ## bring docs/cli.md up to the option table
	$(BIN)/python docs/make_cli.py

clean:  ## remove everything that was built
	rm -rf $(VENV) rust/target demo python/zmrs/*.so .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "zmrs needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -c 'import tomllib; p = tomllib.load(open("pyproject.toml", "rb"))["project"]; print("\n".join(p["dependencies"] + p["optional-dependencies"]["dev"]))' > $(VENV)/requirements.txt
	$(BIN)/python -m pip install --quiet -r $(VENV)/requirements.txt
	touch $@

$(EXTENSION): $(VENV)/.installed $(RUST_SOURCES)
	VIRTUAL_ENV=$(abspath $(VENV)) $(BIN)/maturin develop --release --quiet
	touch $@
