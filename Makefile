# Two commands: `make demo` and `make test`. Both set up .venv on first use.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: install demo test lint unit ranks gpu clean

install: .venv/installed

# torch and its CUDA libraries are the bulk of it (5.4 GB). DeepSpeed builds no op, neither here nor
# later.
.venv/installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	DS_BUILD_OPS=0 $(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: install
	$(BIN)/llm-mde demo --out demo --seed $(or $(SEED),0)

test: lint unit ranks gpu

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy llm_mde

unit: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --maxprocesses 8 tests/unit

# Two files at a time, for each waits for processes to start, end or give up; long ones not last.
ranks: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder \
	  tests/ranks tests/flow

# Skips without one. Files one after the other, for they share it.
gpu: install
	$(BIN)/python -m pytest -q -m gpu -rs tests/gpu

clean:
	rm -rf demo
