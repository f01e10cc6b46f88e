# Two commands are enough: `make run` trains on real images, `make test` proves everything. `make help` lists the others.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

TORCH ?= 2.14.1
# A distribution's Python is built with profile-guided optimization and imports torch in 12 % less time than pyenv's.
SYSTEM_PYTHON := $(shell /usr/bin/python3.11 -c 'import ensurepip, os, sys, sysconfig; \
	os.stat(sysconfig.get_path("include") + "/Python.h"); print(sys.executable)' 2> /dev/null)
PYTHON ?= $(or $(SYSTEM_PYTHON),python3.11)
NEWEST := 2.14.1
VENV := $(if $(filter $(NEWEST),$(TORCH)),.venv,.venv-$(TORCH))
BIN := $(VENV)/bin

RUN := -m launcher submit --backend local --npus 2 --mode full --profile digits --data-path data/digits

.PHONY: help run test quick unit check generate format bench bench-quick npu-shell cluster cluster-down lock clean

help:  ## List the commands
	@sed -n 's/^\([a-z-]*\):.*  ## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 21

run: $(VENV)/run.stamp  ## Train PNASNet-5 on handwritten digits with two processes (about three minutes)
	@$(BIN)/python -m trainer data digits --to data/digits
	@echo "python $(RUN)"
	@$(BIN)/python $(RUN)

test: $(VENV)/test.stamp  ## Lint, types and every test (TORCH=2.9.0 tests the oldest torch)
	$(BIN)/python -m tests

quick: check unit  ## Lint, types and the unit tests

unit: $(VENV)/test.stamp  ## The unit tests, in two processes (less than a minute on two cores)
	$(BIN)/python -m tests unit

check: $(VENV)/test.stamp  ## Lint, format, types, import contracts, dead code, plain English, YAML, generated files
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(if $(filter $(NEWEST),$(TORCH)),$(BIN)/mypy,@echo "types: checked only with torch $(NEWEST), because torch $(TORCH) has other annotations")
	$(BIN)/lint-imports
	$(BIN)/vulture
	$(BIN)/python -m tests.plain_english
	$(BIN)/yamllint --strict .
	$(BIN)/python -m docs --check

generate: $(VENV)/test.stamp  ## Write the generated files: docs/options.md, docs/performance.md, k8s/manifests, the chart's page, rights and schema, pictures
	$(BIN)/python -m docs

format: $(VENV)/test.stamp  ## Format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/test.stamp  ## Compare with timm, torchx, stern and kubectl, and write docs/performance.md (20 minutes)
	$(BIN)/python -m benchmarks

bench-quick: $(VENV)/test.stamp  ## The most important comparisons in brief (3 minutes); publishes nothing
	$(BIN)/python -m benchmarks --quick

npu-shell: $(VENV)/test.stamp  ## A shell in which `--device npu` trains on emulated NPUs (builds them once; needs g++)
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m tests.npu.machine

cluster: $(VENV)/test.stamp  ## Start a Kubernetes with two nodes and simulated NPUs in the background (root; builds it once)
	@$(BIN)/python -m tests.cluster.testbed up

cluster-down:  ## Stop and remove everything that `make cluster` started
	@$(BIN)/python -m tests.cluster.testbed down

lock:  ## Pin the requirements for TORCH again
	@test -x .venv/bin/uv || { echo "make lock needs the tools in .venv: run make check first" >&2; exit 2; }
	.venv/bin/python requirements/lock.py $(TORCH)

clean:  ## Remove environments, caches, and the data and results of `make run`
	rm -rf .venv .venv-* data output *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

requirements/test-$(TORCH).txt:
	@echo "TORCH=$(TORCH): no pinned requirements; pinned are $$(ls requirements/test-*.txt | tr '\n' ' ')(to add them: \
	make lock TORCH=$(TORCH))" >&2; exit 2

# A stamp marks a finished installation.
# The smaller requirements of `make run` exist for the newest torch only.
$(VENV)/run.stamp: requirements/$(if $(filter $(NEWEST),$(TORCH)),run,test)-$(TORCH).txt pyproject.toml | $(VENV)/bin/python
	@echo "installing torch and the other packages into $(VENV) (about 5.5 GB, once)"
	@if [ ! -e $(VENV)/test.stamp ]; then $(BIN)/python requirements/install.py $<; fi
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --config-settings editable_mode=compat --editable .
	@touch $@

$(VENV)/test.stamp: requirements/test-$(TORCH).txt pyproject.toml | $(VENV)/bin/python
	@echo "installing the packages of the tests into $(VENV)"
	@$(BIN)/python requirements/install.py $<
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --config-settings editable_mode=compat --editable .
	@touch $@
