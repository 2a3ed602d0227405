# Everything a developer and CI run. Needs python3 (3.11 or newer) with its venv module, and make.
# CI runs the same targets, so a green `make check` here is a green one there.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PACKAGES := streamproc consumers projections ops

# Where it is set, each of the hundreds of processes that the tests start compiles all modules again: half a second of CPU.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help venv run demo test lint format types contracts check lock clean bench faults faults-all explore soak load

help:  ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

# Re-made when the lock changes: an old environment would test other versions than the lock names.
$(STAMP): requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "streamproc needs Python 3.11 or newer; set PYTHON=")'
	@test ! -L $(VENV) || { echo "$(VENV) is a link: what it leads to would be emptied; remove the link" >&2; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $(STAMP)

venv: $(STAMP)  ## make .venv from requirements.lock

run: venv  ## start everything here: stores, bank sandbox, API, workers; Ctrl-C drains
	$(BIN)/streamproc up

# A clean environment and a directory that is thrown away: the demo must never meet a real bank or real data.
# The directory may be entered by all, because under root Postgres runs as another user.
demo: venv  ## run the demo scenarios to the end; fails if one comes out otherwise than stated
	@data=$$(mktemp -d) && chmod 711 "$$data" && trap 'rm -rf "$$data"' EXIT && \
	  env -i PATH="$$PATH" HOME="$$HOME" LANG=C.UTF-8 STREAMPROC_DATA_DIR="$$data" \
	    STREAMPROC_PORT="$$STREAMPROC_PORT" STREAMPROC_SANDBOX_PORT="$$STREAMPROC_SANDBOX_PORT" \
	    $(BIN)/streamproc up --demo

test: venv  ## run all tests, against a real Valkey and Postgres
	$(BIN)/pytest -n auto --maxprocesses 8 --no-loadscope-reorder

lint: venv  ## check style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: venv  ## mend what ruff can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: venv  ## check types, strictly
	$(BIN)/mypy --strict $(addprefix -p ,$(PACKAGES))

contracts: venv  ## check that imports go one way
	$(BIN)/lint-imports

check: lint types contracts test  ## everything that must be green before a commit

# Three at a time: a run waits more than it computes. Each test is a group of its own (tests/conftest.py). Only the files
# that have some: each of the three would else load all tests of the suite first.
AT_ONCE ?= 3
BREAKING = $(shell grep -rlE 'mark\.(faults|soak)' --include='test_*.py' tests)
faults: venv  ## break the real system for some minutes: every kind of fault once, every known bug found
	$(BIN)/pytest -m "faults and not soak" -n $(AT_ONCE) --no-loadscope-reorder $(BREAKING)

faults-all: venv  ## the same, and the longest runs
	$(BIN)/pytest -m "faults or soak" -n $(AT_ONCE) --no-loadscope-reorder $(BREAKING)

explore: venv  ## the random tests with other cases than `make test` has, others each time
	$(BIN)/pytest -m "hypothesis and not faults and not soak" --hypothesis-profile=others -n auto --maxprocesses 8

SEED ?= 1
MINUTES ?= 10
soak: venv  ## break it for longer, and nothing may grow; SEED=… MINUTES=… CALM=1: of each role one process lives on
	$(BIN)/python -m tests.faults --seed $(SEED) --minutes $(MINUTES) --flat $(if $(CALM),--calm)

RATE ?= 1000
SECONDS ?= 120
load: venv  ## webhooks at a fixed rate while workers are killed; RATE=… SECONDS=…
	$(BIN)/python -m tests.faults.flood --rate $(RATE) --seconds $(SECONDS)

bench: venv  ## measure the engine against the hand-written floor
	$(BIN)/streamproc bench floor

LOCKS := uv pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-emit-find-links \
	--no-config --no-header --quiet pyproject.toml

# The image's lock has the same versions, without the servers and what only developers use.
lock:  ## re-make requirements.lock and ops/requirements.lock (the only target that needs uv)
	$(LOCKS) --upgrade --extra embedded --extra dev --output-file requirements.lock
	$(LOCKS) --extra mcp --extra parquet --extra build --constraints requirements.lock --output-file ops/requirements.lock

clean:  ## remove the environment, caches and build output; ./data stays
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find $(PACKAGES) tests -name __pycache__ -type d -prune -exec rm -rf {} +
