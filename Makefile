# SPDX-License-Identifier: GPL-3.0-or-later
# Everything a developer runs. Targets need Python 3.9+ and, where hosts are started, root on Debian or Ubuntu.

PYTHON ?= python3
DEMO ?=
ONLY ?=
FAULTS ?=
BENCH ?=

export PYTHONPATH := $(CURDIR)/tests
gates = $(PYTHON) -m gates

.DEFAULT_GOAL := help
.PHONY: help faults demo demo-down test lint unit integration molecule bench venvs clean

help: ## Show this help
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1|\2/p' $(MAKEFILE_LIST) | while IFS='|' read -r target text; do printf '  make %-12s %s\n' "$$target" "$$text"; done

demo: ## Enrol two systemd hosts, from nothing to healthy; leaves them up, can be run again
	@python=$$($(PYTHON) -m world.venvs demo) && exec "$$python" -m world.demo $(DEMO)

demo-down: ## Remove everything the demo started
	@python=$$($(PYTHON) -m world.venvs demo) && exec "$$python" -m world down

test: ## Run every gate and print one table (make test ONLY="unit ruff" for some)
	@$(gates) $(if $(ONLY),--only $(ONLY))

lint: ## The gates that only read: licences, ruff, mypy, yamllint, ansible-lint, docs, changelog, role specifications
	@$(gates) --only licences ruff mypy yamllint role-specs ansible-lint changelog docs

unit: ## Unit tests on every supported ansible-core
	@$(gates) --only unit

integration: ## Integration tests against the reference control plane and OpenBao, on every supported ansible-core
	@$(gates) --only integration

faults: ## Every step of enrolment and rotation ended in every way, random kills, downtime (make faults FAULTS="--part random --kills 5 --seed 7")
	@python=$$($(PYTHON) -m world.venvs 2.19) && exec "$$python" -m faults.launch $(FAULTS)

molecule: ## Molecule scenarios on systemd hosts
	@$(gates) --only molecule

bench: ## Measure against what people use today (make bench BENCH="--only enrol --hosts 10 --runs 3"; --help tells more)
	@python=$$($(PYTHON) -m world.venvs bench) && exec "$$python" -m benchmarks $(BENCH)

venvs: ## Make or update the virtual environments of all gates
	@$(PYTHON) -m world.venvs

clean: demo-down ## Remove the demo and build/ (cached images and environments stay in ~/.cache/muster-agents)
	rm -rf build
