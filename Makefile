# Everything runs in .venv, which the first target that needs it makes.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM ?= false

.DEFAULT_GOAL := help
.PHONY: help demo test check style clean

help:  ## Show this help.
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

# torch comes first and pinned: on a machine with a GPU this is the CUDA build, elsewhere what the index offers.
$(VENV)/ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet torch==2.13.0
	$(BIN)/pip install --quiet --editable '.[dev]'
	touch $@

demo: $(VENV)/ready  ## Install, then run the whole method on made-up language families (about five minutes).
	$(BIN)/nspec demo --output demo_out

test: $(VENV)/ready  ## Run all tests; those that need a GPU, a browser or real data are skipped where it is absent.
	$(BIN)/python -m pytest

check: $(VENV)/ready  ## Check style, without changing anything.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

style: $(VENV)/ready  ## Mend what style checks can mend by themselves.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## Remove the environment and what the demo wrote.
	rm -rf $(VENV) demo_out .pytest_cache .ruff_cache .hypothesis *.egg-info
