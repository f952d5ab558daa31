# make demo   train, heal, export and serve a small model on this machine, and write the report
# make test   all tests
# make lint   ruff and mypy
# Needs Python 3.11+ (choose another with PYTHON=python3.12) and at most a C compiler.

PYTHON ?= python3
VENV := .venv
STAMP := $(VENV)/.installed
# The CPU builds of torch for Linux; elsewhere the ordinary index already holds them.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
TORCH_FLAGS := $(if $(filter Linux,$(shell uname -s)),--extra-index-url $(TORCH_INDEX))
RECIPE ?= recipes/pocket.yaml

.PHONY: demo test lint setup clean

demo: setup
	$(VENV)/bin/minnow run $(RECIPE)

test: setup
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n auto --maxprocesses 8 --dist loadgroup $(TESTS)

lint: setup
	$(VENV)/bin/ruff check src tests benchmarks
	$(VENV)/bin/ruff format --check src tests benchmarks
	$(VENV)/bin/mypy

setup: $(STAMP)

$(VENV): $(STAMP)

$(STAMP): pyproject.toml requirements-cpu.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Minnow needs Python 3.11 or newer; name one with: make PYTHON=python3.12" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	# Alone: were its dependencies looked up there too, an index out of reach would cost its retries for each of them.
	$(VENV)/bin/python -m pip install --quiet --retries 1 --no-deps --constraint requirements-cpu.txt torch $(TORCH_FLAGS)
	$(VENV)/bin/python -m pip install --quiet --constraint requirements-cpu.txt --editable '.[dev,export,onnx,eval,serve]'
	@touch $(STAMP)

clean:
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis src/*.egg-info
