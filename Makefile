# The two commands: make up, make test. Everything is done in .venv and by the distribution's packages.
#
# Paths are relative, and what is long is in scripts/setup: the checkout may have spaces in its path.

SHELL := /bin/sh
.DEFAULT_GOAL := help
.PHONY: help root up down verify setup dev lock check format test test-lowest test-packages test-guests test-guest test-machines smoke soak soak-machines sabotage timings scale clean offline \
	docs tutorial test-apps test-cluster soak-cluster up-kind down-kind agent-image

# More for merlab's or pytest's command line: make up ARGS="--until 3", make test ARGS="-k rules"
ARGS ?=

# A folder made by `make offline`: the set-up takes all from there, and asks no network.
OFFLINE ?=
export OFFLINE

# The image of the test cluster's node: script or systemd.
NODE ?= $(MERLAB_CLUSTER_NODE)

MERLAB = scripts/setup root .venv/bin/merlab
CLUSTER = scripts/setup root env PATH="$$PATH" DOCKER_HOST="$$DOCKER_HOST" MERLAB_CLUSTER_RUN="$$MERLAB_CLUSTER_RUN" MERLAB_CLUSTER_NODE="$(NODE)" MERLAB_REQUIRE="$$MERLAB_REQUIRE" .venv/bin/python -m tests.cluster
PYTEST_AS_ROOT = scripts/setup root env MERLAB_REQUIRE="$$MERLAB_REQUIRE" .venv/bin/python -m pytest -p no:cacheprovider

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' Makefile

# Whoever cannot become root is to know it before the set-up, not after it.
up: root setup ## set up this machine, then bring up the embedded lab: ten steps, each verified
	@$(MERLAB) up --lab embedded $(ARGS)
	@scripts/setup on-path

verify: root setup ## prove that requests succeed with the rules flushed
	@$(MERLAB) verify $(ARGS)

down: root ## remove all that merlab made
	@scripts/setup venv
	@$(MERLAB) down $(ARGS)

root:
	@scripts/setup root true

setup: ## system packages and .venv, no more
	@scripts/setup packages
	@scripts/setup venv

offline: ## make a folder for machines without a network: make offline FOLDER=stick RELEASE=trixie, there make up OFFLINE=stick
	@scripts/offline "$(FOLDER)" $(RELEASE)

dev: ## the same with the tools for tests and checks (no root needed)
	@scripts/setup venv dev

lock: ## the newest Python packages that fit, with their hashes, into requirements/ (asks PyPI)
	@scripts/lock

check: dev ## ruff, mypy, import-linter, clang-format
	.venv/bin/ruff check --quiet
	.venv/bin/ruff format --check --quiet
	.venv/bin/mypy
	.venv/bin/lint-imports --no-cache
	find src/merbridge_lab/bpf -name '*.[ch]' -exec .venv/bin/clang-format --dry-run -Werror {} +

format: dev ## let ruff and clang-format rewrite what they can
	.venv/bin/ruff check --fix --quiet || true
	.venv/bin/ruff format --quiet
	find src/merbridge_lab/bpf -name '*.[ch]' -exec .venv/bin/clang-format -i {} +

test: ## set up, then run all tests
	@scripts/setup packages dev
	@scripts/setup venv dev
	@scripts/run-tests $(ARGS)

# Of the lowest versions, not all have wheels for Python 3.13 and later. test_ownership.py asks mypy, which is no
# requirement of merlab: `make test` runs it.
test-lowest: dev ## the unit tests on the lowest versions that pyproject.toml allows (Python 3.10 to 3.12)
	.venv/bin/python -m venv --clear build/lowest
	build/lowest/bin/python -m pip install -q --require-hashes --only-binary :all: -r requirements/lowest.txt
	build/lowest/bin/python -m pip install -q --no-deps --no-build-isolation -e .
	build/lowest/bin/python -m pytest -p no:cacheprovider -q tests/unit --ignore tests/unit/test_ownership.py $(ARGS)

test-packages: setup dev ## build wheel and sdist, install them elsewhere, and use what was installed (asks PyPI)
	@$(PYTEST_AS_ROOT) -m packaging $(ARGS)

test-guests: setup dev ## boot Debian's kernels on this machine's files, and probe them (installs qemu by apt)
	@$(PYTEST_AS_ROOT) -m guests tests/guests $(ARGS)

test-machines: setup dev ## Debian 13's userland, odd machines and users in namespaces, containers of a real Docker (installs mmdebstrap and docker.io by apt)
	@command -v mmdebstrap >/dev/null || scripts/setup root apt-get install -q -y --no-install-recommends mmdebstrap
	@$(PYTEST_AS_ROOT) -m machines tests/machines $(ARGS)

# As short as a whole machine can be: the tables are nft's. Anything else is in soak-machines.
test-guest: setup dev ## one guest of Debian 13, with systemd and its own kernel: doctor, up, verify, down (installs qemu and mmdebstrap by apt)
	@command -v mmdebstrap >/dev/null || scripts/setup root apt-get install -q -y --no-install-recommends mmdebstrap
	@scripts/setup root .venv/bin/python -m tests.guests.soak --no-record --phases machine,state,doctor,up,verify,down,fingerprint debian-13 $(ARGS)

soak-machines: setup dev ## all guests with files of their own, and one with the kind lab, phase by phase, and docs/kernels.md from it (an hour each where KVM boots none)
	@command -v mmdebstrap >/dev/null || scripts/setup root apt-get install -q -y --no-install-recommends mmdebstrap
	@scripts/setup root env PATH="$$PATH" MERLAB_CLUSTER_RUN="$$MERLAB_CLUSTER_RUN" MERLAB_CLUSTER_NODE="$(NODE)" .venv/bin/python -m tests.guests.soak $(ARGS)

smoke: setup dev ## the few tests of a machine that nobody has tried yet (a minute or two)
	@$(PYTEST_AS_ROOT) -q -m smoke tests/kernel $(ARGS)

soak: setup dev ## the long tests: full products of signals, streams, healthy runs
	@$(PYTEST_AS_ROOT) -m soak $(ARGS)
	@scripts/setup root .venv/bin/python -m tests.apps --legs all

sabotage: setup dev ## do every sabotage to two labs side by side, and write docs/sabotage.md
	@scripts/setup root .venv/bin/python tests/sabotage/document.py

test-apps: setup dev ## real programs as apps, by the rules and by eBPF side by side (--json, --app NAME, --case NAME)
	@scripts/setup packages dev
	@scripts/setup root .venv/bin/python -m tests.apps $(ARGS)

# BASE is what it is built from: Debian, which has Python; REF is its name.
BASE ?= debian:bookworm-slim
REF ?= merlab-agent:$(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' src/merbridge_lab/__init__.py)

agent-image: setup dev ## build the image of merlab's dataplane for clusters, and print its size (BASE=IMAGE, REF=NAME)
	@scripts/setup root env PATH="$$PATH" DOCKER_HOST="$$DOCKER_HOST" .venv/bin/python scripts/agent_image.py $(REF) $(BASE)

test-cluster: setup dev ## the kind lab's tests, on a real Kubernetes and Istio that are built here
	@$(CLUSTER) test $(ARGS)

soak-cluster: setup dev ## the long tests of the kind lab: killed at ten instants, and the like
	@$(CLUSTER) test -m "cluster and soak" $(ARGS)

up-kind: setup dev ## the kind lab on that Kubernetes, to play with
	@$(CLUSTER) up $(ARGS)

down-kind: ## remove it, and its Docker daemon
	@scripts/setup venv dev
	@$(CLUSTER) down

bench: setup ## merlab's dataplane against what is aimed at, on the lab that is up (ARGS="--write"; installs load generators by apt)
	@scripts/setup packages bench
	@scripts/setup root .venv/bin/python scripts/bench_targets.py $(ARGS)

timings: setup ## how long up, step 9, verify and down take here, and in how much memory
	@scripts/setup root .venv/bin/python -m tests.timings $(ARGS)

scale: setup dev ## what a pod costs, and what many pods or connections cost a request (a lab comes and goes): ARGS="--report scale.html"
	@scripts/setup root .venv/bin/python -m tests.scale $(ARGS)

docs: dev ## write docs/cli.md again, from the help
	.venv/bin/python scripts/cli_reference.py docs/cli.md

tutorial: setup dev ## fill docs/tutorial.md with the output of a run (the lab comes and goes)
	@scripts/setup root .venv/bin/python scripts/tutorial.py docs/tutorial.md

clean: ## remove .venv and what the tools cached (not a lab: make down)
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .import_linter_cache dist build
