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

.PHONY: help install tool run test peers lint format bench bench-quick bench-convert newer-peers man docs sheets dist clean
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

bench: install peers ## NBD: side by side with the C servers, each row of each kind of disk (an hour)
	@$(VENV)/bin/python benchmarks/nbd.py --startup --json build/benchmarks.json --page docs/benchmarks.md $(ARGS)

bench-quick: install peers ## the same in five minutes: a few rows of each kind
	@$(VENV)/bin/python benchmarks/nbd.py --quick $(ARGS)

bench-convert: install peers ## conversions, side by side with qemu-img
	@$(VENV)/bin/python benchmarks/convert.py $(ARGS)

newer-peers: ## the servers of a newer Debian, into build/newer-peers; `make bench` uses them then
	@sh scripts/newer-peers.sh build/newer-peers

man: install ## man pages of every command, into build/man/
	@$(VENV)/bin/tapdisk man --write build/man

docs: install ## the documentation as a site, into build/docs/
	@sh scripts/docs.sh

sheets: install peers ## conformance sheets of the drivers, into their packages: before a release
	@sh scripts/sheets.sh

dist: install ## wheels and source distributions of everything, checked, into dist/
	@sh scripts/dist.sh

clean: ## remove everything that make made
	rm -rf .venv .demo dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find tapcore plugins tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
