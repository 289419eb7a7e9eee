# Two commands: `make demo` and `make test`. Both set up everything they need.
SHELL := /bin/bash
VENV := .venv
BIN := $(VENV)/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo test quick soak setup check lock clean
.DEFAULT_GOAL := help

help:
	@echo "make demo    set up, build and validate the snapshot, run a session, write the HTML pages"
	@echo "make test    set up, check the code, run every test and every notebook"
	@echo "make quick   the checks, and the tests that need neither Docker nor much time"
	@echo "make soak    what takes too long for every day: each broken image against the whole contract, Node 22 and more"
	@echo "make check   lint, format, types, diagrams and notebooks only"
	@echo "make lock    resolve requirements/*.txt anew"

demo: setup
	@$(BIN)/harvest-nb demo $(if $(LIVE),--live)

test: setup
	@scripts/test

quick: setup
	@HARVEST_ENGINE=off HARVEST_TEST_PROCESSES=$${HARVEST_TEST_PROCESSES:-$$(($$(getconf _NPROCESSORS_ONLN) + 1))} scripts/test -q -m "not docker and not notebook and not slow and not soak"

soak: setup
	@scripts/test -m soak -rP

check: setup
	@scripts/check

setup:
	@scripts/setup

lock: setup
	@scripts/lock

clean:
	rm -rf build $(VENV) .mypy_cache .pytest_cache .ruff_cache
