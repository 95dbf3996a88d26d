# Everything a newcomer types. Each target sets up what it needs; nothing but Python 3.11, make and gcc has to be there.
PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test lint docs bench clean

demo: $(VENV)/ready
	$(BIN)/iformer demo

test: $(VENV)/ready
	$(BIN)/pytest

lint: $(VENV)/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Runs the notebook on the demo's checkpoint, training that first if it is not there, and leaves it with its figures.
docs: $(VENV)/ready runs/demo/model.safetensors
	$(BIN)/jupyter execute docs/notebooks/frequency_analysis.ipynb --output=../../runs/demo/frequency_analysis

runs/demo/model.safetensors: | $(VENV)/ready
	$(BIN)/iformer demo

bench: $(VENV)/ready  # on a quiet machine: some six minutes on two cores
	$(BIN)/python -m benchmarks.performance

$(VENV)/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
