# Everything from a fresh clone with Python 3.11+ and make: the environment is made in .venv on first use.
# Arguments: make demo ARGS="--runs 50"    make test ARGS="tests/unit -k lanes"    make PYTHON=/path/to/python3 demo

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-input
ARGS ?=
# Test processes; they wait more than they work, so there are more than processors. The real Kafka is one for all of
# them; a file's tests stay together, so its servers start once.
JOBS ?= 4
# Tests and faults start hundreds of processes, which would each compile the product anew where the environment says so.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help demo test lint bench sim mutants fault clean
.SILENT:

help:  ## this list
	sed -n 's/^\([a-z][a-z-]*\):[^#]*##\(.*\)/  make \1\t\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 20

demo: $(VENV)/.ready-run  ## the main job on a real Kafka, one worker killed in the middle; ARGS="--input FILE --runs N --json"
	$(BIN)/pipeline demo $(ARGS)

test: $(VENV)/.ready-dev  ## all tests, on a real Kafka
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --max-worker-restart 2 $(ARGS)

lint: $(VENV)/.ready-dev  ## ruff, its formatter, mypy --strict, and the schemas against their history
	code=0; for check in "ruff check --quiet ." "ruff format --check --quiet ." "mypy --strict --no-error-summary" "pipeline schemas check"; do \
		$(BIN)/$$check || { echo "lint: $$check says no"; code=1; }; done; exit $$code

bench: $(VENV)/.ready-bench  ## speed and memory beside bare loops and other libraries; ARGS="--json"
	$(BIN)/python -m bench $(ARGS)

sim: $(VENV)/.ready-dev  ## simulated histories of whole workers on all cores; HISTORIES=n SEED=first; SEED=n alone repeats one
	$(BIN)/python -m tests.simulation $(if $(HISTORIES)$(if $(SEED),,1),--histories $(or $(HISTORIES),100000)) \
		$(if $(SEED),--seed $(SEED)) $(if $(KEEP),--keep "$(KEEP)")

fault: $(VENV)/.ready-dev  ## the fault plan on three real Kafka nodes, about half an hour; ARGS="--rows 4,6-8 --records 5000 --seed 7"
	$(BIN)/python -m tests.fault $(ARGS)

mutants: $(VENV)/.ready-dev  ## the product broken on purpose, break by break: each must be noticed; ARGS="name ... --resume"
	$(BIN)/python -m tests.mutants $(ARGS)

clean:  ## remove the environment and everything built
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# -- the environment: made once, brought up to date when pyproject.toml changes

$(BIN)/python:
	echo "making the Python environment in $(VENV)"
	./.ci/venv $(VENV)

$(VENV)/.ready-run: pyproject.toml | $(BIN)/python
	echo "installing what the pipeline needs (the first time takes a minute or two)"
	$(PIP) --editable .
	touch $@

$(VENV)/.ready-dev: pyproject.toml | $(BIN)/python
	echo "installing what the pipeline, its tests and its checks need (the first time takes a minute or two)"
	$(PIP) --editable '.[test,lint]'
	touch $@ $(VENV)/.ready-run

$(VENV)/.ready-bench: pyproject.toml | $(BIN)/python
	echo "installing what the benchmarks need (the first time takes a minute or two)"
	$(PIP) --editable '.[bench]'
	touch $@ $(VENV)/.ready-run
