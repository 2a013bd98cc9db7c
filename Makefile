# `make run` trains the default configuration, `make test` runs the tests; both make .venv first where it is absent or outdated.
# Further arguments of a run: make run ARGS="model=gpt_tiny train.n_tokens=5M". Another interpreter: make PYTHON=python3.12 run.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
ARGS ?=
# One thread a process: the tests and the workers are processes of their own, and two cores are all that they may count on.
# A file's tests share its runs and ranks, so files are dealt out whole, the longest first (tests/conftest.py).
TEST_ENV := OMP_NUM_THREADS=1

.PHONY: run test test-slow test-portable test-gpu check format docs install clean

run: $(STAMP)
	@echo "Training the default configuration; the first time, its corpus is prepared before."
	$(BIN)/python -m scaling.run $(ARGS)

test: $(STAMP)
	$(TEST_ENV) $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

test-slow: $(STAMP)
	$(TEST_ENV) $(BIN)/python -m pytest -m slow $(ARGS)

# The tests of numbers as other machines would compute them.
test-portable: $(STAMP)
	$(TEST_ENV) $(BIN)/python tools/test_portable.py $(ARGS)

test-gpu: $(STAMP)
	SCALING_TEST_GPU=1 $(BIN)/python -m pytest -m gpu $(ARGS)

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The documentation site, in build/site; a dead link or a page outside the navigation is an error.
docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "Built build/site/index.html"

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@echo "Installing torch, Ray, DeepSpeed and what else constraints.txt pins into $(VENV), once."
	@echo "Minutes of work, and before that a download: some gigabytes from PyPI, where torch brings CUDA."
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	DS_BUILD_OPS=0 $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[dev,docs]'
	@touch $@

clean:
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +
