# `make demo` and `make test` work on a fresh machine with Python 3.11 or later.
PYTHON ?= python3
VENV ?= .venv
WORKERS ?= 2
BIN = $(VENV)/bin
INSTALL = $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test lint types tests bench bench-compare bench-goals clean

demo: $(VENV)/demo
	$(BIN)/retina-run pipelines/quickstart.yaml --workers $(WORKERS)

test: lint types tests

lint: $(VENV)/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/test
	MYPYPATH=.typing $(BIN)/mypy -p retinakit -p retinakit_plugins

tests: $(VENV)/test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

bench: $(VENV)/bench
	mkdir -p $(RESULTS)
	OMP_NUM_THREADS=1 $(BENCH) --benchmark-json=$(RESULTS)/$(shell date +%F-%H%M).json

bench-compare: $(VENV)/bench
	$(BIN)/python benchmarks/compare.py $(RESULTS)

bench-goals: $(VENV)/bench
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/goals.py

RESULTS = benchmarks/results
BENCH = PYTHONPATH=benchmarks $(BIN)/python -m pytest benchmarks --benchmark-group-by=group

OPENRETINA_IMPORTS = lightning hydra-core jaxtyping einops requests tenacity huggingface_hub \
	seaborn ipython moviepy opencv-python-headless

SOURCES = $(shell find core plugins csrc -type f -not -name '*.pyc' -not -name '*.so')

$(VENV)/demo: setup.py pyproject.toml constraints.txt $(SOURCES)
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) ".[distributed]"
	touch $@

$(VENV)/test: setup.py pyproject.toml constraints.txt $(SOURCES)
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) ".[test]"
	touch $@

$(VENV)/bench: setup.py pyproject.toml constraints.txt $(SOURCES)
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) ".[test]" scikit-image scikit-learn shapely tqdm rfest nemos $(OPENRETINA_IMPORTS)
	$(INSTALL) --no-deps pyret stnmf  # they ask for an older NumPy than they need
	$(INSTALL) --no-deps openretina==1.1.1 neuralpredictors==0.3.0  # they ask for torchvision, Jupyter and more
	touch $@

clean:
	rm -rf build dist *.egg-info $(VENV)
