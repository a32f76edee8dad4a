# Everything runs from .venv, which the first target that needs it makes. A stamp file in .venv says what is installed,
# so that a second call installs nothing unless pyproject.toml or constraints.txt changed.

PYTHON ?= python3
WORKERS ?= 2
OUTPUT ?= demo-output

VENV := .venv
RUN := $(VENV)/bin/python
INSTALL := $(RUN) -m pip install --quiet --constraint constraints.txt
NEEDS := $(VENV)/.made pyproject.toml constraints.txt

.DEFAULT_GOAL := help
.PHONY: help demo test test-all bench numbers lint format types doctests docs check clean
.DELETE_ON_ERROR:

help: ## Show this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' $(firstword $(MAKEFILE_LIST)) | awk -F'|' '{printf "%-17s %s\n", $$1, $$2}'

demo: $(VENV)/.demo ## Find, cut out, save and restore layers of the embedded model (results in demo-output/)
	$(VENV)/bin/layersurgery demo --output $(OUTPUT)

# What needs torchvision runs in a process of its own, so that the rest is tested without it.
test: $(VENV)/.test $(VENV)/.torchvision ## Run the fast tests
	$(RUN) -m pytest -m "not slow" -n $(WORKERS) tests/with_torchvision
	$(RUN) -m pytest -m "not slow" -n $(WORKERS)

test-all: $(VENV)/.test $(VENV)/.torchvision ## Run all tests
	$(RUN) -m pytest -n $(WORKERS) tests/with_torchvision
	$(RUN) -m pytest -n $(WORKERS)

bench: $(VENV)/.test ## Check every class of transformers that can be built (about 3 minutes; WORKERS=2 processes)
	$(RUN) -m tests.architectures.bench --jobs $(WORKERS)

numbers: bench ## The same, then what a surgery costs in time and memory, and what 10,000 of them leave behind
	$(RUN) -m tests.benchmarks.surgery

lint: $(VENV)/.dev ## Check style and formatting
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

format: $(VENV)/.dev ## Format the code, and fix what can be fixed
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

types: $(VENV)/.dev ## Check types
	$(RUN) -m pyright

doctests: $(VENV)/.test ## Run the examples in docstrings
	$(RUN) -m pytest --doctest-modules layersurgery

docs: $(VENV)/.dev ## Build the documentation into site/; a warning is an error
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --strict

check: lint types docs doctests test bench ## All that the continuous checks run

clean: ## Remove the environment and everything that was made
	rm -rf $(VENV) site dist build demo-output .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# pip 25.1 is the first that installs dependency groups.
$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "layersurgery needs Python 3.10 or newer, and $(PYTHON) is older or not there; name another: make PYTHON=python3.12 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@$(RUN) -m pip install --quiet --upgrade 'pip>=25.1' || \
	  { echo "pip 25.1 or newer could not be installed; check the network and the settings of pip ('pip config list')" >&2; exit 1; }
	@touch $@

$(VENV)/.demo: $(NEEDS)
	@echo "installing layersurgery into $(VENV) (a few minutes the first time)"
	$(INSTALL) --editable ".[plots]"
	@touch $@

$(VENV)/.test: $(NEEDS)
	@echo "installing layersurgery and its tests' needs into $(VENV) (a few minutes the first time)"
	$(INSTALL) --editable ".[plots,testing]" --group test
	@touch $@ $(VENV)/.demo

# Outside of site-packages, and without what it asks for (a build of torch for CUDA): tests/with_torchvision/shim.py says why.
$(VENV)/.torchvision: $(VENV)/.made constraints.txt
	$(INSTALL) --no-deps --upgrade --target $(VENV)/torchvision torchvision
	@touch $@

$(VENV)/.dev: $(NEEDS)
	@echo "installing layersurgery and its developers' tools into $(VENV) (a few minutes the first time)"
	$(INSTALL) --editable ".[plots,testing]" --group dev
	@touch $@ $(VENV)/.test $(VENV)/.demo
