.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

# uv is faster; plain pip does the same.
INSTALL := $(if $(shell command -v uv),uv pip install --python $(BIN)/python,$(BIN)/python -m pip install --quiet)
MAKE_VENV := $(if $(shell command -v uv),uv venv --quiet --seed --python $(PYTHON) $(VENV),$(PYTHON) -m venv $(VENV))

.PHONY: help setup demo test check format clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Python 3.11 or newer is needed: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	test -x $(BIN)/python || $(MAKE_VENV)
	$(INSTALL) -e '.[dev]'
	@touch $(READY)

setup: $(READY)  ## make .venv and install everything into it

demo: $(READY)  ## draw galaxies, train a head and an adapter on them, compare; no GPU, account or download hub
	$(BIN)/python prepare.py data=sample 'sets=[galaxy10]' count=600 image_size=98
	$(BIN)/python train.py -m experiment=demo lora.rank=0,8

test: $(READY)  ## run the test suite
	$(BIN)/python -m pytest

check: $(READY)  ## lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)  ## mend lint and format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove .venv and caches; outputs/ and data/ stay
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis *.egg-info
