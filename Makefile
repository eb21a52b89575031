# Every target sets up what it needs; .venv is made once and again when its recipe changes.
PYTHON ?= python3
BIN := .venv/bin
ARGS ?=
SHELL := /bin/bash
.SHELLFLAGS := -o pipefail -c

.PHONY: run test test-fast test-slow lint format bench clean

run: .venv/.ready
	$(BIN)/adaptive-ray run configs/quickstart.yaml $(ARGS)

# Slow tests wait a third of the time for processes to start; the fast ones, beside them, take only what is left.
test: .venv/.ready
	@$(MAKE) --no-print-directory --jobs=2 --keep-going test-slow test-fast

test-slow: .venv/.ready
	$(BIN)/pytest -m "slow or gpu" $(ARGS) | sed -u 's/^/slow  /'

test-fast: .venv/.ready
	nice -n 19 $(BIN)/pytest -m "not slow and not gpu" $(ARGS) | sed -u 's/^/fast  /'

lint: .venv/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: .venv/.ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: .venv/.ready
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[benchmarks]'
	$(BIN)/python benchmarks/forecast.py
	$(BIN)/python benchmarks/loss_memory.py
	$(BIN)/python benchmarks/throughput.py
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python benchmarks/swap_cost.py
	$(BIN)/python benchmarks/method_costs.py
	$(BIN)/python benchmarks/clusters.py scale --rows 200000
	$(BIN)/adaptive-ray replay benchmarks/curves

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist *.egg-info

.venv/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[embedded,dev]'
	touch $@
