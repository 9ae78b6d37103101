# Two commands: `make demo` and `make test`. Both prepare the environment first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RESULTS ?= test-results
export RPT_TEST_DATA ?= $(abspath ../shared/data)

.PHONY: setup demo test lint test-full clean

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade --constraint constraints.txt pip setuptools
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: setup
	$(BIN)/rpt demo

test: setup
	$(BIN)/python -m pytest -m "not full" -n 2 --dist loadgroup

lint: setup
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/lint-imports
	$(BIN)/sqlfluff lint sql

clean:
	rm -rf $(VENV) build *.egg-info
