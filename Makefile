# The only set-up there is: every target makes the environment it needs.
#
#   make demo       the whole path on real text: cache → four stages → tables → model → report
#   make test       the tests (six minutes on two cores); make test-all adds the slow ones
#   make lint       ruff and mypy
#   make bench      three of the benchmarks (reading, Parquet, ranking); the others: python benchmarks/NAME.py
#
# PYTHON=python3.12 make …             another interpreter (3.11 or newer)
# PIP_OPTIONS="--extra-index-url …" make …   where pip finds packages too, for instance a CPU build of torch

PYTHON ?= python3
PIP_OPTIONS ?=
VENV ?= .venv
DEMO ?= .demo
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_OPTIONS)

.PHONY: demo test test-all lint format bench clean

$(READY): constraints.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	@# torch first and pinned: an open range may replace it by another build of several gigabytes.
	$(PIP) "$$(grep '^torch==' constraints.txt)"
	$(PIP) --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: $(READY)
	@BIN=$(BIN) OUT=$(DEMO) bash examples/demo.sh

test: $(READY)
	$(BIN)/python -m pytest

test-all: $(READY)
	$(BIN)/python -m pytest -m "slow or not slow"

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(READY)
	$(BIN)/python benchmarks/read.py
	$(BIN)/python benchmarks/parquet.py
	$(BIN)/python benchmarks/ranking.py

clean:
	rm -rf $(VENV) $(DEMO) build *.egg-info .mypy_cache .ruff_cache
