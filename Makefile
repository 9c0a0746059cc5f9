# Every target sets up what it needs on a fresh machine: `make` and a Python of 3.11 or later are enough.
# The setting-up is stamped inside .venv, so that it takes time only after the requirements changed.

PYTHON ?= python3
JOBS   ?= 2

VENV := .venv
BIN  := $(VENV)/bin

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.SUFFIXES:
SHELL := /bin/sh

.PHONY: help demo test test-long chaos soak fuzz bench docs lint audit dist install warm lock clean

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' Makefile | awk -F'|' '{ printf "%-18s %s\n", $$1, $$2 }'

demo: warm  ## a cluster of one: services, packets and what became of them
	$(BIN)/ku demo

test: warm  ## all tests but the long ones (ARGS="-k maglev" passes options to pytest)
	$(BIN)/python -m pytest -n $(JOBS) --dist loadgroup $(ARGS)

chaos: warm  ## faults by seed on a node in namespaces and in virtual time (ARGS="--seed 17")
	$(BIN)/python -m pytest tests/chaos -m "long or not long" $(ARGS)

soak: warm  ## half an hour of mixed load with churn on a real daemon (ARGS="--minutes 5")
	$(BIN)/python -m bench.soak $(ARGS)

fuzz: warm  ## damaged input of every kind for five minutes (ARGS="--minutes 60 --target packets --seed 7")
	PYTHONPATH=tests $(BIN)/python -m fuzz $(ARGS)

test-long: warm  ## all tests, with more examples per property
	HYPOTHESIS_PROFILE=long $(BIN)/python -m pytest -n $(JOBS) --dist loadgroup -m "long or not long" $(ARGS)

bench: warm  ## the benchmarks; results go to bench/results
	$(BIN)/python -m bench $(ARGS)

docs: warm  ## the documentation site, in build/site; a broken link is an error
	$(BIN)/python -m docs.site

lint: install  ## ruff, mypy, the import rules, and the lock files
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	@echo "lock files: every line a version or a hash, no place of origin"
	@! grep -nE '://|^ *-[^ -]|^ *--[^h]|[[:space:]]@[[:space:]]|(^|[[:space:]])/' requirements/*.txt

# pip-audit lives in an environment of its own; it asks a database of vulnerabilities over the network.
audit: install  ## the dependencies: locked, unchanged, licences; known vulnerabilities (OFFLINE=1 leaves those out)
	$(BIN)/python -m release.audit
ifdef OFFLINE
	@echo "NOT ASKED for known vulnerabilities: that takes a network"
else
	$(PYTHON) -m venv $(VENV)-audit
	$(VENV)-audit/bin/pip install --quiet --disable-pip-version-check pip-audit
	$(VENV)-audit/bin/pip-audit --require-hashes --disable-pip -r requirements/runtime.txt
	$(VENV)-audit/bin/pip-audit --require-hashes --disable-pip -r requirements/dev.txt
endif

# The same bytes on every machine: the time is that of the last commit.
dist: install  ## wheel, source, bill of materials and their digests, in dist/
	rm -rf dist
	export SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct); umask 022; $(BIN)/python -m hatchling build \
		&& $(BIN)/python -m release.sbom > dist/kuproxy.cdx.json
	cd dist && sha256sum * > SHA256SUMS

install: $(VENV)/.package  ## the environment in .venv

# Kernels take one to two minutes to compile; once, ahead, rather than in the first test of each process.
warm: install  ## the compile cache
	$(BIN)/python -m kuproxy.warm

# The third-party packages. `--clear`: what a former set needed does not linger.
$(VENV)/.requirements: requirements/dev.txt
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "kuproxy needs Python 3.11 or later")'
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements/dev.txt
	@touch $@

# The project itself, as links to the source. `pip check` fails when the lock files have fallen behind pyproject.toml.
$(VENV)/.package: pyproject.toml $(VENV)/.requirements
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	$(BIN)/pip check --disable-pip-version-check
	@touch $@

# One resolution for every supported Python; hashes bind the files, and nothing says where they came from.
LOCK = $(VENV)-lock/bin/uv pip compile --quiet --universal --python-version 3.11 --fork-strategy fewest \
	--generate-hashes --no-header --no-emit-index-url --no-emit-find-links --annotation-style line

lock:  ## requirements/*.txt anew from pyproject.toml (UPGRADE=--upgrade for the newest versions)
	$(PYTHON) -m venv $(VENV)-lock
	$(VENV)-lock/bin/pip install --quiet --disable-pip-version-check uv
	$(LOCK) $(UPGRADE) pyproject.toml -o requirements/runtime.txt
	$(LOCK) $(UPGRADE) pyproject.toml --group dev -c requirements/runtime.txt -o requirements/dev.txt
	rm -rf $(VENV)-lock

clean:  ## everything that the other targets made, but for benchmark results
	rm -rf $(VENV) $(VENV)-lock $(VENV)-audit build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find src tests bench fuzz -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
