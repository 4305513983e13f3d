# Two commands set everything up on a fresh machine: `make train` and `make test`. PYTHON chooses the interpreter.
PYTHON ?= python3
BIN := .venv/bin
ARGS ?=
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal

.DEFAULT_GOAL := help
.PHONY: help train test test-all lint docs bench format clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# Each target installs what it needs and no more: .venv/train is the package alone, the others add an extra to it.
.venv/train: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "Installing hmtl and its packages into .venv, which takes about two minutes."
	$(BIN)/python -m pip install --disable-pip-version-check --editable .
	touch $@

.venv/%: pyproject.toml | .venv/train
	@echo "Installing the packages for $* into .venv."
	$(BIN)/python -m pip install --disable-pip-version-check --editable '.[$*]'
	touch $@

train: .venv/train ## train on real digits over a coded network (ARGS="r=2 rounds=50" changes settings)
	$(BIN)/python -m hmtl.train $(ARGS)

test: .venv/test ## run the tests that take seconds (ARGS="-k ledger" chooses some)
	$(PYTEST) $(ARGS)

test-all: .venv/dev ## run all tests: also processes, signals, documentation and notebooks
	$(PYTEST) -n 3 -m '' --hypothesis-profile all $(ARGS)  # more than cores, as many tests wait for processes

lint: .venv/lint ## check format, style, types and who imports whom
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: .venv/docs ## build the documentation site into build/docs
	rm -rf docs/reference/api  # is written anew
	$(BIN)/python -m sphinx -W --keep-going -q -c docs . build/docs

format: .venv/lint ## put the format right
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: .venv/dev ## measure against the peers; writes bench.json
	$(BIN)/python -m pytest tests/benchmarks -s $(ARGS)

clean: ## remove the environment and everything that was built
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis bench.json
