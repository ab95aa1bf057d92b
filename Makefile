# `make` or `make help` lists the targets.
# Of what is installed, so that `make test` does not replace it.
PLATFORM ?= $(or $(shell cat .venv/skiff-platform 2>/dev/null),cpu)
PROFILE ?= profiles/demo.toml
SIF ?= sif
version := $(shell cat VERSION)
bin := .venv/bin
shell_scripts = $(shell git ls-files -z | xargs -0 grep -lE '^\#!/(usr/)?bin/(env )?(ba|da)?sh' --)

.DEFAULT_GOAL := help
.PHONY: help install host test-host apptainer demo demo-sif build-sif test-sif test lint format
.PHONY: lock lock-debian clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: ## make .venv from the lock (PLATFORM=cpu|cuda, PYTHON=/path/to/python3.12)
	@tools/install $(PLATFORM)

host: ## check podman and the other host programs; as root, install what is missing
	@tools/host-programs

test-host: ## the same with the programs that only the tests call
	@tools/host-programs test

apptainer: ## check Apptainer; where the host has none, unpack one into a folder of its own
	@tools/install-apptainer

demo: install host ## train a tiny coding agent in real sandboxes on this machine
	@$(bin)/skiff run $(PROFILE)

build-sif: install host apptainer ## build the SIFs (IMAGE="runtime trainer", DEBIAN=newest, BASE=docker://...)
	@$(bin)/skiff images build $(IMAGE) --output $(SIF) $(if $(DEBIAN),--debian $(DEBIAN)) $(if $(BASE),--base $(BASE))

test-sif: install test-host apptainer ## smoke tests of the SIFs: podman sandbox from inside, a training step
	@SKIFF_SIF=$(abspath $(SIF)) $(bin)/python -m pytest tests/sif $(ARGS)

demo-sif: install host apptainer ## the demo with both halves inside their SIFs (after build-sif)
	@$(bin)/skiff run $(PROFILE) --set images.runtime=$(SIF)/skiff-runtime-$(version).sif \
		--set images.trainer=$(SIF)/skiff-trainer-cpu-$(version).sif

test: install test-host apptainer ## run the tests (real podman, real trainer; ARGS= goes to pytest)
	@$(bin)/python -m pytest $(ARGS)

lint: install ## ruff, mypy --strict, the rooms' import contract, shellcheck, the lock
	$(bin)/ruff check .
	$(bin)/ruff format --check .
	$(bin)/mypy
	$(bin)/lint-imports --no-cache
	$(bin)/shellcheck $(shell_scripts)
	$(bin)/python tools/check_lock.py

format: install ## let ruff rewrite the sources
	$(bin)/ruff check --fix .
	$(bin)/ruff format .

lock: ## resolve pyproject.toml into locks/ anew (UPGRADE=1: newest versions)
	@tools/lock $(if $(UPGRADE),--upgrade)

lock-debian: install apptainer ## take the Debian mirror's newest versions into locks/debian.txt
	@$(bin)/skiff images build base runtime trainer-cpu trainer --output $(SIF) --lock-debian

clean: ## remove .venv, caches and build leftovers (runs/ is kept)
	rm -rf .venv .venv-tools build dist sif
	rm -rf python/*.egg-info tools/vllm-cpu-metadata/build tools/vllm-cpu-metadata/*.egg-info
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
