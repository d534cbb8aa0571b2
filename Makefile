# `make demo` shows tada at work, `make test` checks it. Both set up .venv by themselves; PYTHON chooses the interpreter.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-slow test-package test-oldest docs lint lint-elsewhere format
.DEFAULT_GOAL := test

# torch first, by itself: where an index offers a CPU build, the packages that need torch then take that one.
.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "tada needs Python 3.11 or newer; name one: make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch==2.13.0
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: .venv/ready
	rm -rf quickstart
	$(BIN)/tada quickstart --out quickstart

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The types as on other systems, a minute each.
lint-elsewhere: .venv/ready
	$(BIN)/mypy --platform win32 --cache-dir .mypy_cache/win32
	$(BIN)/mypy --platform darwin --cache-dir .mypy_cache/darwin

test: lint
	$(BIN)/pytest -n 2 -m 'not slow'

test-slow: lint lint-elsewhere
	$(BIN)/pytest

# A wheel and an sdist, each in an empty environment of each Python that is here, away from the checkout.
PYTHONS ?= python3.11 python3.12 python3.13
test-package: .venv/ready
	$(BIN)/python tests/environments.py package $(PYTHONS)

# The same with the oldest dependencies that pyproject.toml allows.
test-oldest: .venv/ready
	$(BIN)/python tests/environments.py oldest $(PYTHON)

.venv/docs: .venv/ready
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	touch $@

docs: .venv/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

format: .venv/ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
