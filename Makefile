# Every target sets up what it needs; `make test` works in a fresh checkout.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
TORCH := $(shell sed -n 's/^torch==//p' constraints.txt)

.DEFAULT_GOAL := help
.PHONY: help install test demo clean

help: ## List the targets
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1\t\2/p' Makefile
	@echo "PYTHON=... chooses the interpreter that $(VENV) is made with (now: $(PYTHON))."

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install "torch==$(TORCH)"
	$(BIN)/python -m pip install -c constraints.txt -e ".[dev]"
	touch $@

install: $(STAMP) ## Make .venv and install the package, editable, with its development tools

test: $(STAMP) ## Lint, check the format and the types, run the tests
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/python -m pytest -q

demo: $(STAMP) ## Train and evaluate on the bundled laboratory model
	$(BIN)/python train.py fit --config configs/lab_gpt2.yaml

clean: ## Remove caches and build outputs; .venv and runs/ stay
	rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .coverage htmlcov
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -exec rm -rf {} +
