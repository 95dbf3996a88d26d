# Everything a newcomer types. Each target sets up what it needs; nothing but Python 3.11, make and gcc has to be there.
PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test soak soak-pipelines soak-steps soak-kills lint docs bench gpu clean

demo: $(VENV)/ready
	$(BIN)/iformer demo

test: $(VENV)/ready  # a process for each core, up to four
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses auto --maxprocesses 4 --dist loadfile

# Whatever draws random numbers, thousands of times: the training data and steps of every recipe; and fifty kills.
soak: soak-pipelines soak-steps soak-kills

soak-pipelines: $(VENV)/ready  # some minutes on two cores
	$(BIN)/pytest -m soak --durations=0 tests/soak/test_pipelines.py

soak-steps: $(VENV)/ready  # some five minutes
	OMP_NUM_THREADS=1 $(BIN)/pytest -m soak --durations=0 tests/soak/test_steps.py

soak-kills: $(VENV)/ready  # some five minutes
	OMP_NUM_THREADS=1 $(BIN)/pytest -s -m soak tests/soak/test_kills.py

lint: $(VENV)/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Runs the notebook on the demo's checkpoint, training that first if it is not there, and leaves it with its figures.
docs: $(VENV)/ready runs/demo/model.safetensors
	$(BIN)/jupyter execute docs/notebooks/frequency_analysis.ipynb --output=../../runs/demo/frequency_analysis

runs/demo/model.safetensors: | $(VENV)/ready
	$(BIN)/iformer demo

# On a quiet machine of two cores about an hour; PHOTOGRAPHS=FOLDER adds prediction of photographs beside timm's loop.
bench: $(VENV)/ready
	$(BIN)/python -m benchmarks.performance
	$(BIN)/python -m benchmarks.tasks
	$(BIN)/python -m benchmarks.scaling
	$(BIN)/python -m benchmarks.prediction $(if $(PHOTOGRAPHS),--photographs $(PHOTOGRAPHS))
	$(BIN)/python -m benchmarks.many_files --files 100000
	$(BIN)/python -m benchmarks.page

# On a machine with an NVIDIA GPU, an hour or two: the tests that need it, the benchmark, and docs/gpu.md.
gpu: $(VENV)/ready
	@$(BIN)/python -c "from benchmarks import gpu; gpu.require()"
	$(BIN)/pytest -m gpu
	$(BIN)/python -m benchmarks.gpu

$(VENV)/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	@echo "Installing the pinned versions into $(VENV): a few minutes, once."
	$(BIN)/pip install --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
