# `make demo` and `make test` work on a fresh machine with Python 3.11 or later.
PYTHON ?= python3
VENV ?= .venv
WORKERS ?= 2
BIN = $(VENV)/bin
INSTALL = $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test lint types tests clean

demo: $(VENV)/demo
	$(BIN)/retina-run pipelines/quickstart.yaml --workers $(WORKERS)

test: lint types tests

lint: $(VENV)/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/test
	MYPYPATH=.typing $(BIN)/mypy -p retinakit -p retinakit_plugins

tests: $(VENV)/test
	$(BIN)/python -m pytest -n 2 --dist worksteal

SOURCES = $(shell find core plugins csrc -type f -not -name '*.pyc' -not -name '*.so')

$(VENV)/demo: setup.py pyproject.toml constraints.txt $(SOURCES)
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) ".[distributed]"
	touch $@

$(VENV)/test: setup.py pyproject.toml constraints.txt $(SOURCES)
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) ".[test]"
	touch $@

clean:
	rm -rf build dist *.egg-info $(VENV)
