# Everything a newcomer types. Each target sets up what it needs; nothing but Python, make and gcc has to be there.
SUPPORTED := $(shell sed -n 's/.*Python :: \(3\.[0-9]*\)".*/\1/p' pyproject.toml | sort -t. -k2,2nr)
# The newest of these that is there and can make a virtual environment.
PYTHON ?= $(shell for each in $(SUPPORTED); do python$$each -c "import ensurepip" 2> /dev/null && echo python$$each && break; done)
VENV ?= .venv
BIN := $(VENV)/bin
CONSTRAINTS ?= constraints.txt

.PHONY: demo test soak soak-pipelines soak-steps soak-kills soak-comparison soak-explorer lint package docs bench gpu clean

demo: $(VENV)/ready
	$(BIN)/iformer demo

test: $(VENV)/ready  # a process for each core, up to four; says in the end what was skipped, and why
	OMP_NUM_THREADS=1 $(BIN)/pytest -rs --numprocesses auto --maxprocesses 4 --dist loadfile

# Whatever draws random numbers, thousands of times: the training data and steps of every recipe; and fifty kills.
soak: soak-pipelines soak-steps soak-kills soak-comparison

soak-pipelines: $(VENV)/ready  # some minutes on two cores
	$(BIN)/pytest -m soak --durations=0 tests/soak/test_pipelines.py

soak-steps: $(VENV)/ready  # some five minutes
	OMP_NUM_THREADS=1 $(BIN)/pytest -m soak --durations=0 tests/soak/test_steps.py

soak-kills: $(VENV)/ready  # some five minutes
	OMP_NUM_THREADS=1 $(BIN)/pytest -s -m soak tests/soak/test_kills.py

soak-comparison: $(VENV)/ready  # some ten minutes
	OMP_NUM_THREADS=1 $(BIN)/pytest -s -m soak tests/soak/test_comparison.py

soak-explorer: $(VENV)/ready  # an hour of clicks in a browser; not part of soak
	OMP_NUM_THREADS=1 EXPLORER_SECONDS=3600 $(BIN)/pytest -s -m soak --timeout 4500 tests/soak/test_explorer.py

lint: $(VENV)/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The documentation as a site, in build/site: executes the tutorials, which takes minutes, and fails at a broken link.
docs: $(VENV)/ready
	rm -rf build/tutorials
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# The wheel and the source archive, checked; and the wheel in an environment that has nothing else: some minutes.
package: $(VENV)/ready
	rm -rf dist
	$(BIN)/python -m build
	$(BIN)/twine check --strict dist/*
	OMP_NUM_THREADS=1 $(BIN)/pytest -m package tests/test_package.py tests/test_extras.py

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
	@test -x $(BIN)/python || test "$(PYTHON)" || { echo "No Python with venv is on the path among those that are \
	supported: $(SUPPORTED). Name one: make PYTHON=/path/to/python"; exit 2; }
	@test -x $(BIN)/python || { echo "Using $(PYTHON); supported are Python $(SUPPORTED)."; $(PYTHON) -m venv $(VENV); }
	@echo "Installing the versions in $(CONSTRAINTS) into $(VENV): a few minutes, once."
	$(BIN)/pip install --disable-pip-version-check --constraint $(CONSTRAINTS) --editable ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
