# Two commands set everything up on a fresh machine: `make train` and `make test`. PYTHON chooses the interpreter.
PYTHON ?= python3
BIN := .venv/bin
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help train test lint docs bench format clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

train: .venv/installed ## train on real digits over a coded network (ARGS="r=2 rounds=50" changes settings)
	$(BIN)/python -m hmtl.train $(ARGS)

test: .venv/installed ## run the tests (ARGS="-k ledger" chooses some)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 $(ARGS)

lint: .venv/installed ## check format, style and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

docs: .venv/installed ## build the documentation site into build/docs
	$(BIN)/python -m sphinx -W --keep-going -q -c docs . build/docs

format: .venv/installed ## put the format right
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: .venv/installed ## measure against the peers; writes bench.json
	$(BIN)/python -m pytest tests/benchmarks -m benchmark -s $(ARGS)

clean: ## remove the environment and everything that was built
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis bench.json
