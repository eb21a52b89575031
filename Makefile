# Every target sets up what it needs; .venv is created once, and again when its requirements change.
PYTHON ?= python3
BIN := .venv/bin
ARGS ?=
SHELL := /bin/bash
.SHELLFLAGS := -o pipefail -c

.PHONY: run check test test-ray-runs test-ray-trials test-others test-fast lint format bench clean

run: .venv/.ready
	$(BIN)/adaptive-ray run configs/quickstart.yaml $(ARGS)

# Linting runs beside the tests, too.
check: .venv/.ready
	@$(MAKE) --no-print-directory --jobs=4 --keep-going lint test-ray-runs test-ray-trials test-others

# Ray's tests wait a third of their time for processes to start. Therefore tests of whole runs, tests of single trials
# and all other tests run in parallel. The others come before Ray's workers (nice 15), so that all end together, and
# compute with one thread: a thread that waits for a core keeps the other one waiting.
test: .venv/.ready
	@$(MAKE) --no-print-directory --jobs=3 --keep-going test-ray-runs test-ray-trials test-others

test-ray-runs: .venv/.ready
	$(BIN)/pytest -m ray tests/adaptive_ray/experiment $(ARGS) | sed -u 's/^/runs    /'

test-ray-trials: .venv/.ready
	$(BIN)/pytest -m ray --ignore=tests/adaptive_ray/experiment $(ARGS) | sed -u 's/^/trials  /'

test-others: .venv/.ready
	OMP_NUM_THREADS=1 nice -n 10 $(BIN)/pytest -m "not ray" $(ARGS) | sed -u 's/^/others  /'

test-fast: .venv/.ready
	$(BIN)/pytest -m "not (ray or slow or gpu)" $(ARGS)

lint: .venv/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	nice -n 15 $(BIN)/mypy

format: .venv/.ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: .venv/.ready
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[benchmarks]'
	$(BIN)/python benchmarks/forecast.py
	$(BIN)/python benchmarks/public_curves.py
	$(BIN)/python benchmarks/loss_memory.py
	$(BIN)/python benchmarks/throughput.py
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python benchmarks/wall_time.py
	$(BIN)/python benchmarks/throughput_alone.py
	$(BIN)/python benchmarks/choosing.py
	$(BIN)/python benchmarks/swap_cost.py
	$(BIN)/python benchmarks/method_costs.py
	$(BIN)/python benchmarks/clusters.py scale --rows 200000

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist *.egg-info

.venv/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[embedded,dev]'
	touch $@
