# make help   this list
# make demo   the whole loop on real data, with 6 devices
# make drift-demo  phones are remounted, the fleet detects the drift and recovers, some minutes
# make demo-batch  every recording of the fleet scored offline, by a job that is killed and resumed
# make test   format, lint, types, and the tests but for the long ones of make chaos
# make up     the whole loop in containers; make down takes it down, volumes and all with VOLUMES=1
# make docs   build the documentation into .tidewheel/site, without network
# make screenshots  take the pictures of the console anew
# make coverage  the tests again, with what they reach
# make chaos  tests/chaos and the recovery of the drift demo, half an hour: kills at random and at
#             each step, long outages; TIDEWHEEL_CHAOS_SEED=<number> takes the same chances again
# make test-install  the built wheel and its extras in virtualenvs of their own, some minutes
# make test-docker  compose/docker/compose.yaml as it is, on images made here, about 10 minutes
# make mutants  defects of the core made on purpose, and the test that finds each
# make bench-NAME  measure an area: device, worker, late_labels, federation, release, large, batch, scale, soak, gains,
#             demo, invitations, rollouts; see docs/benchmarks.md
# make soak   a month of a thousand made-up devices, about 8 minutes

# What the tests need is installed side by side: pip waits for a core, apt-get for the network.
MAKEFLAGS += --jobs=2
ifneq ($(filter clean,$(MAKECMDGOALS)),)
.NOTPARALLEL:
endif

# Each of the many processes would compile what it imports anew, which takes longer than the work of some.
unexport PYTHONDONTWRITEBYTECODE

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
# Part of chaos, not of test: four minutes, and more where its first model has to be trained.
RECOVERY := tests/e2e/test_recovery.py
LONG := $(addprefix --ignore , $(RECOVERY) tests/install tests/docker tests/chaos)
PACKAGES := streams federation edge_client compose

.PHONY: install help demo drift-demo demo-batch up down test test-install test-docker mutants coverage chaos check format docs clean soak screenshots

install: .venv/installed

help:
	@sed -n 's/^# //p; /^$$/q' $(firstword $(MAKEFILE_LIST))

# Without --no-compile pip compiles what is never imported, a third of its CPU.
PIP := $(BIN)/pip install --quiet --no-compile --constraint constraints.txt

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(PIP) --editable '.[dev]'
	touch $@

# The demos run with what a user installs, half of what the tests want.
RUNS := $(if $(wildcard .venv/installed),.venv/installed,.venv/runs)

.venv/runs: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(PIP) --editable '.[all,embedded]'
	touch $@

# TASK=pedestrians: hourly counts of street sensors, 200 hours a second.
# TASK=flights: departures with categories, a day a second.
TASK ?= har
DEMO_har := --devices 6
DEMO_pedestrians := --devices 6 --speed 720000
DEMO_flights := --devices 6 --speed 86400

demo: $(RUNS)
	rm -rf .tidewheel/demo
	$(BIN)/tidewheel up streams/tasks/$(TASK).py:task $(DEMO_$(TASK)) --until-closed --rounds 2 \
		--state .tidewheel/demo

drift-demo: $(RUNS)
	rm -rf .tidewheel/drift-demo
	$(BIN)/python -m examples.drift.demo --state .tidewheel/drift-demo

demo-batch: $(RUNS)
	rm -rf .tidewheel/demo-batch
	$(BIN)/python -m examples.batch.demo --state .tidewheel/demo-batch

COMPOSE := docker compose --file compose/docker/compose.yaml

# OPTIONS: such as --env-file my.env
up:
	$(COMPOSE) $(OPTIONS) up --build --detach
	@echo 'status: $(COMPOSE) exec controller sh -c '"'"'tidewheel status "$$TASK" --state /state'"'"

down:
	$(COMPOSE) $(OPTIONS) down $(if $(VOLUMES),--volumes)

# Three processes of two cores: many tests wait for processes that they have started. The fleets, with
# which one of them begins, are a twentieth slower beside two others than beside one.
# Threads of torch would only wait for each other.
test: check .venv/kafka.jsa .venv/servers/installed .venv/nginx .venv/promtool .venv/chromium .venv/postgresql
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses 3 --dist worksteal $(LONG) --durations=10

# The same with what the tests reach, which takes longer.
coverage: install .venv/kafka.jsa .venv/servers/installed .venv/nginx .venv/promtool .venv/chromium .venv/postgresql
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses 2 --dist worksteal $(LONG) --cov \
		--cov-report=term:skip-covered

# The servers of the tests want other versions than the rest has.
.venv/servers/installed: tests/servers-requirements.txt .venv/installed
	$(PYTHON) -m venv .venv/servers && .venv/servers/bin/pip install --quiet --no-compile --requirement $< && touch $@

# Classes that the Kafkas of the tests have in common; without a Kafka there is none.
.venv/kafka.jsa: .venv/installed
	$(BIN)/python -m tests.rig.servers.kafka $@

.venv:
	mkdir -p $@

# One at a time.
APT := flock .venv apt-get

# For the test of compose/proxy; where it cannot be installed that test says so.
.venv/nginx: | .venv
	PATH=$$PATH:/usr/sbin; command -v nginx >$@ || \
		{ $(APT) update -qq && $(APT) install -qq --yes --no-install-recommends nginx-light; } >$@ 2>&1 || \
		echo "nginx is missing and apt-get cannot install it: see $@"

# For the tests of compose/monitoring: Prometheus' own checker of rules.
.venv/promtool: | .venv
	command -v promtool >$@ || \
		{ $(APT) update -qq && $(APT) install -qq --yes --no-install-recommends prometheus; } >$@ 2>&1 || \
		echo "promtool is missing and apt-get cannot install it: see $@"

# For the tests of the console; the same.
.venv/chromium: | .venv
	command -v chromium >$@ || \
		{ $(APT) update -qq && $(APT) install -qq --yes --no-install-recommends chromium \
		fonts-dejavu-core; } >$@ 2>&1 || echo "chromium is missing and apt-get cannot install it: see $@"

# For the tests of batch jobs into a database; the same.
.venv/postgresql: | .venv
	ls -d /usr/lib/postgresql/*/bin >$@ 2>&1 || \
		{ $(APT) update -qq && $(APT) install -qq --yes --no-install-recommends postgresql; } >$@ 2>&1 || \
		echo "PostgreSQL is missing and apt-get cannot install it: see $@"

# The built wheel and its extras in virtualenvs of their own, about 5 minutes.
test-install: install
	$(BIN)/pytest tests/install

# As root: it starts a Docker where none answers, and makes images without a registry.
test-docker: install .venv/docker
	$(BIN)/pytest tests/docker

.venv/docker: .venv/installed
	{ apt-get update -qq && apt-get install -qq --yes --no-install-recommends docker.io docker-compose \
		docker-buildx debootstrap iptables curl; } >$@.log 2>&1 && touch $@

chaos: install
	$(BIN)/pytest tests/chaos $(RECOVERY)

# Defects of the core, made on purpose: each must be found by a test, about 15 minutes.
mutants: install
	$(BIN)/python -m tests.mutants

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet --site-dir .tidewheel/site

# The pictures of the console in the documentation, of a fleet that runs: OPTIONS="ADDRESS DEVICE".
screenshots: install .venv/chromium
	$(BIN)/python docs/tools/screenshots.py $(OPTIONS)

format: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# docs/benchmarks.md is edited from what a program prints.
bench-%: install
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.$* $(OPTIONS)

soak: bench-soak

# Bytewax is an extra.
bench-worker: .venv/bench
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.worker $(OPTIONS)

.venv/bench: .venv/installed
	$(PIP) --editable '.[bench]'
	touch $@

clean:
	rm -rf .venv .tidewheel build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .coverage
