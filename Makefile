# Everything runs in .venv, which the first target that needs it makes.
PYTHON ?= python3
JOBS ?= 2
VENV := .venv
NEXT := .venv-next
BIN := $(VENV)/bin
export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM ?= false
# Tests run side by side in JOBS processes, a file in one of them; a process computes on one thread.
test test-fast test-all test-next: export OMP_NUM_THREADS := 1
PYTEST := -m pytest -n $(JOBS) --dist loadfile

.DEFAULT_GOAL := help
.PHONY: help demo test test-fast test-all test-next check style docs clean

help:  ## Show this help.
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

# torch comes first and pinned: on a machine with a GPU this is the CUDA build, elsewhere what the index offers.
$(VENV)/ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet torch==2.13.0
	$(BIN)/pip install --quiet --editable '.[dev]'
	touch $@

demo: $(VENV)/ready  ## Install, then run the whole method on made-up language families, in minutes.
	$(BIN)/nspec demo --output demo_out

test: $(VENV)/ready  ## Run the tests that are not slow; what needs a GPU, a browser or real data is skipped without it.
	$(BIN)/python $(PYTEST) -m "not slow"

test-fast: $(VENV)/ready  ## Run the tests that train nothing and start no process, in a minute or so.
	$(BIN)/python $(PYTEST) -m "not slow and not medium"

test-all: $(VENV)/ready  ## Run every test, the slow ones too.
	$(BIN)/python $(PYTEST)

test-next: pyproject.toml  ## Run the tests on the newest versions that the package allows, in an environment beside.
	test -d $(NEXT) || ($(PYTHON) -m venv $(NEXT) && $(NEXT)/bin/pip install --quiet torch==2.13.0)
	$(NEXT)/bin/pip install --quiet --upgrade --editable '.[test]' accelerate huggingface_hub peft transformers
	$(NEXT)/bin/python $(PYTEST) -m "not slow"

check: $(VENV)/ready  ## Check style and types, of the pages' snippets too, without changing anything.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m tests.helpers.pages build/snippets
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/pyright --pythonpath $(BIN)/python build/snippets

style: $(VENV)/ready  ## Mend what style checks can mend by themselves.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/ready  ## Write the reference of all public names from their docstrings: reference/index.html.
	$(BIN)/pdoc --docformat google --output-directory reference \
		$$($(BIN)/python -c 'import nspec_hf as n; print(n.__name__, *(f"nspec_hf.{room}" for room in n.ROOMS))')

clean:  ## Remove the environments and what the demo and the other targets wrote.
	rm -rf $(VENV) $(NEXT) build demo_out reference .pytest_cache .ruff_cache .hypothesis *.egg-info
