# `make demo` and `make test` need nothing but Python 3.11 or newer; the rest builds on them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
RUNS := $(VENV)/.runs
CORES := $(shell getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2)

# The CPU build of PyTorch unless there is an NVIDIA GPU, whose machines often have PyTorch already.
ifeq ($(shell command -v nvidia-smi 2>/dev/null),)
  TORCH := $(BIN)/pip install -q -c constraints.txt torch==2.13.0+cpu \
           || $(BIN)/pip install -q -c constraints.txt torch==2.13.0
  VENV_FLAGS :=
else
  TORCH := $(BIN)/python -c 'import torch' 2>/dev/null || $(BIN)/pip install -q torch
  VENV_FLAGS := --system-site-packages
endif

.PHONY: demo test test-slow test-web check format docs example bench clean

demo: $(RUNS)
	mkdir -p out
	$(BIN)/purify-audit compress models/digits-ddpm.safetensors \
	    --classifier models/digits-classifier.safetensors --eps 0.15 --out out/demo.json

test: $(READY)
	$(BIN)/python -m pytest -m "not slow" -n $(CORES) --dist loadfile

test-slow: $(READY)
	$(BIN)/python -m pytest -m slow

# The HTML report in a real browser: needs node and Chromium.
test-web: $(READY)
	npm --prefix tests/web install --no-package-lock --no-audit --no-fund
	$(BIN)/python -m pytest -m web

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python docs/generate.py --check
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(READY)
	$(BIN)/python docs/generate.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

# The example report and its pictures: half an hour on one core; needs what test-web needs.
example: $(READY)
	npm --prefix tests/web install --no-package-lock --no-audit --no-fund
	$(BIN)/python docs/example_report.py

bench: $(READY)
	$(BIN)/python benchmarks/overhead.py

$(RUNS): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV_FLAGS) $(VENV)
	$(TORCH)
	$(BIN)/pip install -q -c constraints.txt -e .
	touch $(RUNS)

$(READY): $(RUNS)
	$(BIN)/pip install -q -c constraints.txt -e '.[dev]'
	touch $(READY)

clean:
	rm -rf $(VENV) out site .pytest_cache .mypy_cache .ruff_cache .hypothesis
