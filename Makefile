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

demo: $(READY)  ## draw three datasets, train, ask for advice, merge, report, predict; no GPU, account or model hub
	$(BIN)/python prepare.py data=sample 'sets=[galaxy10,utkface,wflw]' count=320 image_size=98
	$(BIN)/python train.py -m experiment=demo
	$(BIN)/python merge.py advise=true experiment=demo_pairs
	$(BIN)/python merge.py -m experiment=demo_pairs
	$(BIN)/python merge.py experiment=demo_pairs sweep=none 'tasks=[age_class,galaxy,landmarks]' \
		merge=ladder 'merge.rungs=[cat,gram,regress]' realign=deep name=demo
	$(BIN)/python report.py
	$(BIN)/python predict.py model=outputs/models/demo images=data/sample/wflw/WFLW_images/0--Parade faces=detect \
		'tasks=[age_class,landmarks]' pictures=outputs/predictions/demo
	@printf '%s\n' '' 'Open next:' \
		'  outputs/reports/all/report.html   every score, curve and example' \
		'  outputs/predictions/demo/         faces with what the merged model says of them' \
		'  outputs/models/demo/README.md     the merged model'

# A file at a time to each process, so that what a file's tests share is made once; a thread each, or they would fight.
test: $(READY)  ## run the test suite
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile

check: $(READY)  ## lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)  ## mend lint and format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove .venv and caches; outputs/ and data/ stay
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis *.egg-info
