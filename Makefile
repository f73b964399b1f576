# Two commands do everything: `make run` and `make test`. Both set up .venv first.
PYTHON ?= python3.11
BIN := .venv/bin

.PHONY: run bench test lint setup clean

run: setup  ## the main job: the whole method on real images, on two CPU cores
	$(BIN)/python -m sttabt.run experiment=quickstart

bench: setup  ## what dropping tokens saves on this machine: some minutes on two CPU cores
	$(BIN)/python -m sttabt.bench $(ARGS)

test: setup  ## everything that must hold; two processes, one thread each
	$(BIN)/python -m pytest -n 2

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

setup: .venv/installed

.venv/installed: pyproject.toml requirements.lock
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --editable .
	touch $@

clean:
	rm -rf .venv build dist src/*.egg-info
