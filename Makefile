# Everything a developer and CI run. Needs python3 (3.11 or newer) with its venv module, and make.
# CI runs the same targets, so a green `make check` here is a green one there.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PACKAGES := streamproc consumers projections ops

.DEFAULT_GOAL := help
.PHONY: help venv run demo test lint format types contracts check lock clean bench

help:  ## list the targets
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

# Re-made when the lock changes: an old environment would test other versions than the lock names.
$(STAMP): requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "streamproc needs Python 3.11 or newer; set PYTHON=")'
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $(STAMP)

venv: $(STAMP)  ## make .venv from requirements.lock

lock:  ## re-make requirements.lock (the only target that needs uv)
	uv pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-emit-find-links \
	  --no-config --no-header --quiet --upgrade --extra embedded --extra dev pyproject.toml --output-file requirements.lock

clean:  ## remove the environment, caches and build output; ./data stays
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find $(PACKAGES) tests -name __pycache__ -type d -prune -exec rm -rf {} +
