# Every target creates and fills .venv by itself; `make` alone lists them.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.filled

.PHONY: help venv demo test test-gpu check format bench clean
help:
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 12

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "diag needs Python 3.11 or newer; found %d.%d. Set PYTHON=/path/to/python3.11." % sys.version_info[:2])'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

venv: $(STAMP)  ## create .venv and install diag with its development tools

demo: $(STAMP)  ## train a small GPT on 1 rank and on 2, and explain the difference
	$(BIN)/diag run --gpus 2 --device cpu --with-baseline=60 --max-steps 150 --name demo examples/charlm.py
	$(BIN)/diag scaling-report

test: $(STAMP)  ## the test suite (real gloo ranks, no GPU needed)
	$(BIN)/python -m pytest -m 'not gpu'

test-gpu: $(STAMP)  ## the tests that need an NVIDIA GPU
	$(BIN)/python -m pytest -m gpu

check: $(STAMP)  ## ruff, ruff format, mypy strict, import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP)  ## rewrite the code in the house format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove .venv, caches and recorded runs
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache diag-runs
