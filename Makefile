# `make demo` and `make test` need Python >= 3.11, pip and make; everything else goes into .venv.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install -qq --constraint constraints.txt
WORKERS ?= 2
MODEL ?= runs/assets/smollm2-135m-instruct

# The wall around sampled programs: tests of it are skipped where it cannot be had.
BUBBLEWRAP := command -v bwrap >/dev/null || [ "$$(id -u)" != 0 ] || ! command -v apt-get >/dev/null || \
	{ (timeout 120 apt-get install -y -qq bubblewrap || { timeout 120 apt-get update -qq && timeout 120 apt-get install -y -qq bubblewrap; }) >/dev/null 2>&1; true; }

# One thread per test process: the models are tiny, and two processes share the cores.
TEST_ENV := OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false

.PHONY: help install demo test lint pytest slow proof faults site demo-smollm bench support versions clean
.DEFAULT_GOAL := help

help:
	@echo "make demo         train three models in a few minutes: SFT, a reward model, DPO"
	@echo "make test         lint, types, and every test"
	@echo "make demo-smollm  DPO with LoRA on a real 135M model (downloads about 100 MB)"
	@echo "make proof        put historical bugs back, one at a time: the tests must fail (writes docs/proof.md);"
	@echo "                  then make slow, the long products of settings and methods that make test leaves out"
	@echo "make faults       kill runs, fill disks, send in hostile files, programs, servers (writes docs/reliability.md)"
	@echo "make site         build the documentation into build/site"
	@echo "make bench        side by side measurements (see docs/benchmarks.md)"
	@echo "make support      every architecture and combination on tiny models (writes docs/support.md; goes on where it was)"
	@echo "make versions     one step of every method under the oldest and newest supported packages (downloads them)"
	@echo "make install      .venv with strop and the development tools"
	@echo "make clean        remove .venv and caches"

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "strop needs Python 3.11 or newer; set PYTHON=/path/to/python3.11")'
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.runtime: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing strop into $(VENV) ..."
	@$(PIP) --editable .
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing strop and the development tools into $(VENV) ..."
	@$(PIP) --editable '.[dev]'
	@$(BUBBLEWRAP)
	@touch $@ $(VENV)/.runtime

$(VENV)/.smollm: $(VENV)/.runtime
	@$(PIP) --editable '.[demo-smollm]'
	@touch $@

install: $(VENV)/.dev

demo: $(VENV)/.runtime
	@$(BIN)/strop demo

test: lint pytest

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

pytest: $(VENV)/.dev
	$(TEST_ENV) $(BIN)/python -m pytest -q -n $(WORKERS)

slow: $(VENV)/.dev
	$(TEST_ENV) $(BIN)/python -m pytest -q -n $(WORKERS) -m slow

proof: $(VENV)/.dev
	@$(BIN)/python -m proof
	@$(MAKE) slow

faults: $(VENV)/.dev
	@$(TEST_ENV) $(BIN)/python -m proof.faults $(ONLY)

site: $(VENV)/.dev
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet
	@echo "build/site/index.html"

demo-smollm: $(VENV)/.smollm
	@$(BIN)/python -m examples.smollm

bench: $(VENV)/.dev
	$(BIN)/python -m benchmarks.offline --model $(MODEL) --methods sft dpo kto orpo cpo reward --prompt 512 --completion 128 512 --turns 2
	$(BIN)/python -m benchmarks.online --model $(MODEL) --methods grpo rloo online-dpo gkd --turns 2
	$(BIN)/python -m benchmarks.rollout

versions: $(VENV)/.dev
	@$(TEST_ENV) $(BIN)/python -m benchmarks.support.versions

support: $(VENV)/.dev
	@$(TEST_ENV) $(BIN)/python -m benchmarks.support

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache .hypothesis build src/*.egg-info
