# Everything a person types. `make repro` and `make test` need Python 3.11, git and make, and nothing else.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
export PATH := $(abspath $(BIN)):$(PATH)
export DVC_NO_ANALYTICS := 1
export MLFLOW_DISABLE_TELEMETRY := true
READY := $(VENV)/.ready

.PHONY: repro up test check lessons pytest test-remotes test-clients lab ui tensorboard docs bench hooks export clean

repro: $(READY)            ## data, the whole pipeline, the reports
	@mlops-nb simulate --if-missing
	@dvc repro
	@test -f reports/index.html || mlops-nb stage report
	@echo "Open $(abspath reports/index.html)"

up: $(READY)               ## server and controller, until Ctrl-C; the first model where there is none
	@mlops-nb simulate --if-missing
	@mlops-nb up

test: check lessons pytest ## export drift, lint, lesson cells, pytest

check: $(READY)            ## the notebooks and the package are in step; ruff
	@python tests/support/export_drift.py
	@ruff check

lessons: $(READY)          ## run every notebook that exports, each in a process of its own
	@python tests/support/run_notebooks.py

pytest: $(READY)
	@python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

test-remotes: $(VENV)/remotes/.ready ## DVC remotes: push, clone and pull over S3 and SSH, from an environment with their extras
	@TEST_REMOTES=1 python -m pytest -n 0 tests/end_to_end/test_remotes.py

$(VENV)/remotes/.ready: $(READY) tests/support/remotes_environment.py
	@python tests/support/remotes_environment.py $(VENV)/remotes
	@touch $@

test-clients: $(VENV)/clients/.ready ## gRPC and REST by Triton's and KServe's clients, from an environment with them
	@TEST_CLIENTS=1 python -m pytest -n 0 tests/end_to_end/test_inference_clients.py

$(VENV)/clients/.ready: $(READY) tests/support/clients_environment.py
	@python tests/support/clients_environment.py $(VENV)/clients
	@touch $@

$(READY): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

lab: $(READY)              ## JupyterLab on the same environment
	@jupyter lab nbs

ui: $(READY)               ## the runs, in MLflow's pages
	@mlops-nb ui

tensorboard: $(READY)      ## trainings as they run, in TensorBoard
	@tensorboard --logdir .mlops/tensorboard --host 127.0.0.1

docs: $(READY)             ## the site, into docs/_build
	@python docs/build.py

bench: $(READY)            ## the ratios, into docs/benchmarks/
	@python benchmarks/run.py

hooks: $(READY)            ## git hooks: clean notebooks, merge them cell by cell, check before a commit
	@nbdev-install-hooks && pre-commit install

export: $(READY)           ## notebooks to package
	@nbdev-export && nbdev-clean

clean:                     ## what runs and tests leave behind; data and models stay
	@rm -rf .pytest_cache .ruff_cache .hypothesis docs/_build _proc _docs
