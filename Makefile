# make setup   the virtual environment with the product and everything it needs
# make check   lint, types, import contracts and unit tests: seconds, no servers
# make test    everything, against real servers
# make demo    the product end to end; KEEP=1 leaves it running
# make sim     SEED=first SEEDS=count: the services in a simulated world, as many seeds as asked, on all cores
# make chaos   SEED=n FAULTS=count: the real services and servers, and a nemesis

SHELL := /bin/sh
.DEFAULT_GOAL := setup
.PHONY: setup packages check lint test demo sim chaos

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

setup: $(READY)

$(READY): requirements.lock pyproject.toml
	@if ! $(PYTHON) -c 'import ensurepip, venv' 2>/dev/null; then \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    apt-get -q update && DEBIAN_FRONTEND=noninteractive apt-get -q install --yes --no-install-recommends python3-venv; \
	  else \
	    echo "Python's venv module is missing; run: sudo apt-get install python3-venv" >&2; exit 1; \
	  fi; \
	fi
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "$(PYTHON) is older than 3.11: name another one, as in 'make setup PYTHON=python3.12'" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "installing what requirements.lock names (about a minute, once)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	@PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --disable-pip-version-check \
	  --no-deps --no-build-isolation -e .
	@touch $@

packages: $(READY)
	@$(BIN)/kmmhub dev packages

lint: $(READY)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

check: lint
	$(BIN)/python -m pytest -q tests/unit

test: packages lint
	$(BIN)/python -m pytest -q

demo: packages
	$(BIN)/kmmhub demo $(if $(KEEP),--keep)

sim: $(READY)
	@$(BIN)/python -m simulation --seed $(or $(SEED),1) --seeds $(or $(SEEDS),1000) $(ARGUMENTS)

chaos: packages
	@$(BIN)/python -m chaos --seed $(or $(SEED),1) --faults $(or $(FAULTS),200) $(ARGUMENTS)
