# Two commands for a new machine: `make demo` and `make test`. Needs Python >= 3.11 with venv, nothing else.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test slow lint clean

demo: .venv/base
	$(BIN)/auscult demo -o auscult-demo --overwrite

test: .venv/test lint
	$(BIN)/python -m pytest -n 2 -q -m "not slow"

slow: .venv/test
	$(BIN)/python -m pytest -q -m slow

lint: .venv/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/base: pyproject.toml .venv/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	touch $@

.venv/test: pyproject.toml constraints.txt .venv/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[cluster,formats,hub,models,test]'
	touch .venv/base $@

clean:
	rm -rf .venv auscult-demo
