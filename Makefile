# make demo   the whole loop on real data, with 6 devices
# make test   format, lint, types and all tests

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
PACKAGES := streams federation edge_client compose

.PHONY: install demo test check format clean

install: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: install
	rm -rf .tidewheel/demo
	$(BIN)/tidewheel up streams/tasks/har.py:task --devices 6 --until-closed --rounds 2 --speed 30 \
		--state .tidewheel/demo

test: check
	$(BIN)/pytest --cov --cov-report=term:skip-covered --durations=10

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf .venv .tidewheel build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .coverage
