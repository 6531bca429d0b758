# On a fresh Debian 12 with git, make and python3: `make run` or `make test`.
# PYTHON=python3.12     the interpreter to set up with
# IMAGE=[HANDLE:]PATH   what `make run` serves (default: a demo disk that it makes)
# PREFIX=DIR            where `make tool` installs
# ARGS=...              further options: of `tapdisk serve`, pytest or the benchmark

PYTHON ?= python3
VENV := .venv
# Names the place as well: in a moved or copied tree everything is set up again.
STAMP := $(VENV)/.installed-$(shell pwd | cksum | cut -d' ' -f1)
IMAGE ?=
ARGS ?=

export PYTHON IMAGE

PREFIX ?=
# one more than there are processors: some of a test's time is waiting for the disk
WORKERS ?= $(shell echo $$((1 + $$(nproc))))

.PHONY: help install tool run test peers lint format bench bench-formats man docs dist clean
.DEFAULT_GOAL := help

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 10

install: $(STAMP) ## set up .venv with tapcore, its plugins and the development tools
	@:

$(STAMP): pyproject.toml $(wildcard plugins/*/pyproject.toml) scripts/setup-venv.sh
	@sh scripts/setup-venv.sh $(VENV)
	@touch $@

tool: ## install tapdisk for this user: into ~/.local, or PREFIX=
	@sh scripts/install-tool.sh $(PREFIX)

run: install ## serve IMAGE=, or a demo disk, over NBD on a Unix socket
	@bash scripts/demo.sh "$$IMAGE" $(ARGS)

test: install peers ## run every test, with the real clients where apt can install them
	@$(VENV)/bin/python -m pytest -n $(WORKERS) --dist worksteal $(ARGS)

peers:
	@sh scripts/install-peers.sh

lint: install ## ruff, mypy strict, shellcheck where there is one
	@sh scripts/lint.sh

format: install ## let ruff format and fix what it can
	@$(VENV)/bin/ruff check --quiet --fix . || true
	@$(VENV)/bin/ruff format --quiet .

bench: install peers ## side by side with qemu-nbd, qemu-storage-daemon and nbdkit
	@$(VENV)/bin/python benchmarks/nbd.py $(ARGS)

bench-formats: install peers ## qcow2 and VMDK images, side by side with QEMU's servers
	@$(VENV)/bin/python benchmarks/formats.py $(ARGS)

man: install ## man pages of every command, into build/man/
	@$(VENV)/bin/tapdisk man --write build/man

docs: install ## the documentation as a site, into build/docs/
	@sh scripts/docs.sh

dist: install ## wheels and source distributions of everything, checked, into dist/
	@sh scripts/dist.sh

clean: ## remove everything that make made
	rm -rf .venv .demo dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find tapcore plugins tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
