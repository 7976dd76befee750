# `make demo` takes a capsule network the whole way; `make test` runs the tests. Both install into .venv first.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test test-slow formal fuzz lint clean

demo: $(VENV)/.demo
	$(BIN)/redcane run configs/digits.yaml

test: $(VENV)/.dev
	$(BIN)/python -m pytest -m "not slow" -n auto --dist worksteal

test-slow: $(VENV)/.dev
	$(BIN)/python -m pytest -m slow

formal: $(VENV)/.dev
	$(BIN)/python -m sim.formal

fuzz: $(VENV)/.dev
	$(BIN)/python -m tests.fuzz

lint: $(VENV)/.dev
	$(BIN)/ruff check
	$(BIN)/mypy

$(VENV)/.demo: $(BIN)/python pyproject.toml
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/.dev: $(BIN)/python pyproject.toml
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@ $(VENV)/.demo

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; name one: make PYTHON=python3.12 ..." >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "$(PYTHON) cannot make a virtual environment: on Debian or Ubuntu, apt install python3-venv" >&2; exit 1; }

clean:
	rm -rf build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
