# Everything a newcomer runs. Needs Python >= 3.11 with venv, and make; the rest installs itself
# into .venv from the lock files.

PYTHON ?= python3
BIN := .venv/bin
# Processes that share the tests, most of which wait for a server to start; 0 for none.
WORKERS ?= 3
COMPILE := $(BIN)/uv pip compile --quiet --upgrade --universal --generate-hashes \
  --no-emit-index-url --no-header --python-version 3.11 pyproject.toml
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: run test check format bench crash soak lock clean

run: .venv/run.stamp  ## serve on 127.0.0.1:5000 (or PORT) with the built-in model
	@exec $(BIN)/turnkeeper serve --model eliza

test: .venv/dev.stamp  ## every test this machine can run
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile

check: .venv/dev.stamp  ## format, lint, types, the import rule, known vulnerabilities
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m rig.audit requirements/build.lock

format: .venv/dev.stamp
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: .venv/dev.stamp  ## figures against the floor and the tutorial's Flask program
	$(BIN)/python -m bench $(ARGS)

crash: .venv/dev.stamp  ## kill a server under load again and again (KILLS=50 SEED=…), audit its books
	$(BIN)/python -m crash --kills $(or $(KILLS),50) $(if $(SEED),--seed $(SEED)) $(CRASH)

soak: .venv/dev.stamp  ## mixed load for MINUTES=10; nothing of the server may grow
	$(BIN)/python -m soak --minutes $(or $(MINUTES),10) $(SOAK)

lock: .venv/dev.stamp  ## renew the lock files; what runs is what is tested
	$(COMPILE) --group dev --output-file requirements/dev.lock
	$(COMPILE) --group build --constraint requirements/dev.lock --output-file requirements/build.lock
	$(BIN)/npm update --prefix tests/node --silent --ignore-scripts --no-audit --no-fund

clean:
	rm -rf .venv dist tests/node/node_modules

.venv/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Turnkeeper needs Python 3.11 or newer; say which one with make PYTHON=...")'
	$(PYTHON) -m venv .venv

.venv/run.stamp: .venv/bin/python requirements/build.lock pyproject.toml
	@echo "Setting up .venv (once) ..."
	@$(PIP) --require-hashes --requirement requirements/build.lock
	@$(PIP) --no-build-isolation --no-deps --editable .
	@touch $@

.venv/dev.stamp: .venv/run.stamp requirements/dev.lock tests/node/package-lock.json
	@echo "Setting up the tools for tests and checks (once) ..."
	@$(PIP) --require-hashes --requirement requirements/dev.lock
	@$(BIN)/npm ci --prefix tests/node --silent --ignore-scripts --no-audit --no-fund
	@touch $@
