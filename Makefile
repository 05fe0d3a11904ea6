# FineTwo: every command a developer needs. `make` alone lists them.
# PYTHON chooses the interpreter that makes .venv; everything else runs from .venv.

BIN := .venv/bin
STAMP := .venv/.stamp
PIP := $(BIN)/python -m pip --disable-pip-version-check install -qq -c constraints.txt

# The first interpreter that runs and is new enough.
FIND_PYTHON = for p in $(PYTHON) python3 python3.13 python3.12 python3.11; do \
	if "$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then echo "$$p"; break; fi; done

.DEFAULT_GOAL := help
.PHONY: help install demo test test-slow check bench golden clean bench-train bench-generate bench-data bench-start \
	bench-growth bench-limits bench-gpu bench-page

help:  ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-15s %s\n", $$1, $$2 }' Makefile

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

bench: bench-limits bench-train bench-generate bench-data bench-start bench-growth bench-page  ## Run every benchmark that needs no GPU

PEERS := .venv-peers/.stamp
$(PEERS): benchmarks/peers.txt constraints.txt $(STAMP)
	@$(BIN)/python benchmarks/peers.py
	@touch $@

bench-train: $(STAMP) $(PEERS)  ## Measure training against transformers, TRL, PEFT, LitGPT and a plain loop
	@$(BIN)/python benchmarks/train.py $(ARGS)

bench-generate: $(STAMP) $(PEERS)  ## Measure generation against transformers, CTranslate2 and llama.cpp
	@$(BIN)/python benchmarks/generate.py $(ARGS)

bench-data: $(STAMP) $(PEERS)  ## Measure tokenising against the Hugging Face fast tokeniser
	@$(BIN)/python benchmarks/data.py $(ARGS)

bench-start: $(STAMP) $(PEERS)  ## Measure the wait before the first step, against TRL
	@$(BIN)/python benchmarks/start.py $(ARGS)

bench-growth: $(STAMP)  ## Measure how cost grows with size, length, batch, rank and jobs
	@$(BIN)/python benchmarks/growth.py $(ARGS)

bench-limits: $(STAMP)  ## Measure what the machine can do at most
	@$(BIN)/python benchmarks/limits.py $(ARGS)

bench-gpu: $(STAMP)  ## Check and measure on one CUDA GPU (under ten minutes; no network)
	@$(BIN)/python benchmarks/gpu.py $(ARGS)

bench-page: $(STAMP)  ## Write docs/performance.md from the benchmarks' results
	@$(BIN)/python benchmarks/performance_page.py

golden: $(STAMP)  ## Rewrite the golden files; review them as a diff
	@FINETWO_GOLDEN=1 $(BIN)/python -m pytest -q tests/test_golden.py

clean:  ## Remove caches and build outputs (keeps .venv and runs)
	@rm -rf build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
