# Two commands do everything on a fresh machine: `make demo` (the main job) and `make test` (all checks and tests).
PYTHON ?= python3
VENV ?= .venv
# An index of CPU wheels of torch, e.g. https://download.pytorch.org/whl/cpu; TORCH=cuda takes the CUDA build.
TORCH_INDEX ?=
TORCH ?= cpu
HOME_DIR ?= .demo-home
ARGS ?=
BIN := $(VENV)/bin
export PYTHON VENV TORCH_INDEX TORCH

.PHONY: demo test check soak bench install lock clean

demo: install
	@$(BIN)/python recipes/demo.py --home $(HOME_DIR) $(ARGS)

test: install check
	@$(BIN)/pytest -q -m "not slow" --durations=10
	@$(BIN)/pytest -q -m slow --durations=10

check: install
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/pytest -q tests/contracts -m "not slow"

soak: install
	@SOAK=full $(BIN)/pytest -q

bench: install
	@$(BIN)/python benchmarks/run.py $(ARGS)

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml requirements.lock .ci/install $(wildcard recipes/*/requirements.txt)
	@bash .ci/install

lock: install
	@$(BIN)/python .ci/lock.py > requirements.lock

clean:
	rm -rf $(VENV) .demo-home .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
