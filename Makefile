# `make demo` and `make test` need Python 3.10+ and make; each creates .venv, installs, and runs.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
DEMO ?= work_dirs/demo
BENCH ?= work_dirs/bench

.PHONY: help demo test test-slow test-gpu test-oldest lint wheel bench clean

help:
	@echo "make demo       synthesise two small domains, adapt from one to the other, show table and pictures"
	@echo "make test       the test suite, under 10 minutes on 2 cores"
	@echo "make test-slow  the tests that take minutes each;  make test-gpu  those that need a CUDA device"
	@echo "make test-oldest  the test suite with the oldest versions that pyproject.toml allows, in .venv-oldest"
	@echo "make lint       ruff;  make wheel  build and try the wheel;  make bench  this machine's times, hours of them"

$(INSTALLED): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("visionkit needs Python 3.10 or newer, this is " + sys.version.split()[0] if sys.version_info < (3, 10) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $@

demo: $(INSTALLED)
	$(BIN)/python datasets/synthesize_reid.py --out $(DEMO)/data --scale tiny --seed 1
	$(BIN)/visionkit train configs/core_reid_demo.py --work-dir $(DEMO) --cfg-options source.root=$(DEMO)/data target.root=$(DEMO)/data
	$(BIN)/visionkit render docs/images/photo.jpg -o $(DEMO)/views.mp4 --frames 12

# a thread for each of the two processes: with two each they wait for one another on two cores
test: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

test-slow: $(INSTALLED)
	$(BIN)/python -m pytest -m slow

test-gpu: $(INSTALLED)
	$(BIN)/python -m pytest -m gpu

test-oldest:
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python -m pip install --quiet uv
	.venv-oldest/bin/uv pip install --quiet --python .venv-oldest --resolution lowest-direct --editable ".[dev]"
	OMP_NUM_THREADS=1 .venv-oldest/bin/python -m pytest -n 2

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

wheel: $(INSTALLED)
	rm -rf dist build
	$(BIN)/python -m build --wheel --outdir dist .
	$(BIN)/python tools/check_wheel.py dist/*.whl

bench: $(INSTALLED)
	mkdir -p $(BENCH)
	for name in backbones reid render attention; do $(BIN)/python tools/benchmark.py $$name --json $(BENCH)/$$name.json || exit 1; done

clean:
	rm -rf $(VENV) .venv-oldest build dist
