# kvserver: everything a developer or a stranger does, by name. `make help` lists it.
# Needs Python 3.11+ and make; every target sets up what it needs in $(VENV).

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PYTEST := $(BIN)/python -m pytest

.DEFAULT_GOAL := help
.PHONY: help setup run demo cluster test test-all verify fix proto mutants sim chaos bench bench-durability bench-memory bench-tuning bench-endurance docker clean

help: ## Show this list
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP) ## Create the virtual environment and install the project into it

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "kvserver needs Python 3.11 or newer (found $(PYTHON)); set PYTHON=..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable . --group dev
	@touch $@

run: $(STAMP) ## Start a single node on 127.0.0.1:2379 (data in default.kvserver)
	@exec $(BIN)/kvserver

demo: $(STAMP) ## The three-node story: put, get, kill, restart, catch up (exit 0 only if every check held)
	@$(BIN)/python -m kvserver.testing.demo

cluster: $(STAMP) ## Three local nodes on 2379, 22379, 32379 until Ctrl-C (data in .run/cluster)
	@exec $(BIN)/python -m kvserver.testing.local_cluster

test: $(STAMP) ## What CI runs: everything but the slow tests
	$(PYTEST) -n 2 -m "not slow and not process"
	$(PYTEST) -m "not slow and process"

test-all: $(STAMP) ## All tests, slow ones included
	$(PYTEST) -n 2 -m "not process"
	$(PYTEST) -m "process"

verify: $(STAMP) ## Lint, types, import contracts, generated code, documented flags and commands
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python proto/generate.py --check
	$(PYTEST) -q -m docs

fix: $(STAMP) ## Repair what can be repaired: format, safe lint fixes, generated code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/python proto/generate.py

proto: $(STAMP) ## Regenerate kvserver/pb from proto/
	$(BIN)/python proto/generate.py

mutants: $(STAMP) ## Plant known raft mistakes, one at a time; every one must be caught
	$(BIN)/python -m tests.raft.mutants

sim: $(STAMP) ## Explore 200 seeds of the cluster simulator
	$(BIN)/python -m kvserver.testing.sim --seeds 1..200

chaos: $(STAMP) ## 200 SIGKILLs and stops of a real three-node cluster under load, and the checker over its history
	$(BIN)/python -m kvserver.testing.chaos

bench: $(STAMP) ## Puts and reads beside a bare gRPC echo in the same run
	$(BIN)/python bench/throughput.py

bench-durability: $(STAMP) ## fdatasyncs per put, and the event loop's lag during 1 MB puts and a 1 GB snapshot (needs 5 GB of disk)
	$(BIN)/python bench/durability.py

bench-memory: $(STAMP) ## Memory beside etcd: the same workloads, every member sampled (etcd where it is installed)
	$(BIN)/python bench/memory.py

bench-tuning: $(STAMP) ## The tuning study: catch-up, p99 of writes and memory, one factor at a time (45 minutes, 20 GB of disk)
	$(BIN)/python bench/tuning.py

bench-endurance: $(STAMP) ## Memory over 200,000 puts, and with 1,000,000 keys and a restart
	$(BIN)/python bench/endurance.py puts
	$(BIN)/python bench/endurance.py keys

docker: ## Build the image kvserver:latest (BASE_IMAGE=... where no registry is reachable)
	docker build $(if $(BASE_IMAGE),--build-arg BASE_IMAGE=$(BASE_IMAGE)) --tag kvserver:latest .

clean: ## Remove the virtual environment, caches and local data
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist .run bench/out
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
