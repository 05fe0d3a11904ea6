# FineTwo: every command a developer needs. `make` alone lists them.
# PYTHON chooses the interpreter that makes .venv; everything else runs from .venv.

BIN := .venv/bin
STAMP := .venv/.stamp
PIP := $(BIN)/python -m pip --disable-pip-version-check install -qq -c constraints.txt

# The first interpreter that runs and is new enough.
FIND_PYTHON = for p in $(PYTHON) python3 python3.13 python3.12 python3.11; do \
	if "$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then echo "$$p"; break; fi; done

.DEFAULT_GOAL := help
.PHONY: help install demo test test-slow check bench golden clean

help:  ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' Makefile

install: $(STAMP)  ## Make .venv with FineTwo and the development tools (once)

$(STAMP): pyproject.toml constraints.txt
	@python=$$($(FIND_PYTHON)); \
	if [ -z "$$python" ]; then \
		echo "make install: Python 3.11 or newer was not found. Fix: install it, or name it: make install PYTHON=/path/to/python3" >&2; \
		exit 3; \
	fi; \
	echo "Installing into .venv with $$("$$python" --version); the first time this takes some minutes."; \
	"$$python" -m venv .venv
	@$(BIN)/python -m pip --disable-pip-version-check install -qq --upgrade pip
	@echo "  1/2 PyTorch"; $(PIP) torch
	@echo "  2/2 FineTwo and the development tools"; $(PIP) -e '.[dev]'
	@touch $@

demo: $(STAMP)  ## Watch the embedded model learn word games (under four minutes on two cores)
	@$(BIN)/finetwo demo

test: $(STAMP)  ## Run the tests
	@$(BIN)/python -m pytest

test-slow: $(STAMP)  ## Run the slow tests as well
	@$(BIN)/python -m pytest -m "not gpu and not network"

check: $(STAMP)  ## Lint, format, strict types, architecture
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/python -m pytest -q tests/test_architecture.py

bench: $(STAMP)  ## Time the start of FineTwo against transformers'
	@$(BIN)/python benchmarks/start.py

golden: $(STAMP)  ## Rewrite the golden files; review them as a diff
	@FINETWO_GOLDEN=1 $(BIN)/python -m pytest -q tests/test_golden.py

clean:  ## Remove caches and build outputs (keeps .venv and runs)
	@rm -rf build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
