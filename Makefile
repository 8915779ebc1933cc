# make demo   the main job on real ultrasound, with an embedded PACS
# make test   every test; those that need a peer program skip where it is not installed
# make lint   format, style and types
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test lint benchmark clean
.DELETE_ON_ERROR:

demo: $(VENV)/node
	$(BIN)/dicom-node demo --output out/demo

test: $(VENV)/dev
	$(BIN)/python -m pytest

lint: $(VENV)/dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

benchmark: $(VENV)/dev
	$(BIN)/python benchmarks/receive_throughput.py
	$(BIN)/python benchmarks/student_speed.py

$(VENV)/created: constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or later is needed; set PYTHON=..." if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/node: $(VENV)/created pyproject.toml
	@echo "Installing the node (the first time this fetches torch and takes a while) ..."
	$(PIP) --editable .
	@touch $@

$(VENV)/dev: $(VENV)/node pyproject.toml
	$(PIP) --editable '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) out
