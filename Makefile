# make train     virtual environment, install, train.  Variables: ENV, ARGS; for all: PYTHON, TORCH, VENV
# make test      virtual environment, install, tests.  Variables: PYTEST_ARGS
# make evidence  the runs of a list, one after the other or side by side.  Variables: LIST, ARGS
# make gpu       on a machine with a GPU: its tests, speeds, a profile and a short training, in one report
# make lint      style and types
PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV ?= .venv
ENV ?= atari/pong
ARGS ?=
PYTEST_ARGS ?= --numprocesses 2 --dist loadfile --no-loadscope-reorder --max-worker-restart 0
LIST ?= runs/results/cpu.csv
BIN := $(VENV)/bin

.PHONY: install train test evidence gpu lint clean

train: $(VENV)/installed
	$(BIN)/dreamer train --env $(ENV) $(ARGS)

test: $(VENV)/installed-test
	$(BIN)/python -m pytest $(PYTEST_ARGS)

# With the Python that is there if it has all that is needed, as on a machine that reaches no package index.
COMMA := ,
NEEDED := torch, gymnasium, ale_py, dm_control, tensorboard, click, matplotlib
find_python = if $(PYTHON) -c "import $(NEEDED)$(2)" 2>/dev/null; then python=$(PYTHON); \
	else $(MAKE) $(1) && python=$(BIN)/python; fi

evidence:
	@$(call find_python,$(VENV)/installed) && { $$python -m dreamer batch $(LIST) $(ARGS); ended=$$?; \
	PYTHONPATH=.:$$PYTHONPATH $$python tests/own_runs.py >own_runs.csv && mv own_runs.csv dreamer/data || { rm -f own_runs.csv; exit 1; }; exit $$ended; }

gpu:
	@$(call find_python,$(VENV)/installed-test,$(COMMA) pytest$(COMMA) hypothesis) && \
	PYTHONPATH=.:$$PYTHONPATH $$python tests/gpu_report.py $(ARGS)

lint: $(VENV)/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

install: $(VENV)/installed

# torch first, in the version that is tested: left to itself pip takes the newest. dm-control: see setup.cfg.
$(VENV)/installed: setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet "$(TORCH)"
	$(BIN)/pip install --quiet --no-deps "dm-control>=1.0.30"
	PYTHONWARNINGS=ignore $(BIN)/pip install --quiet --editable .
	touch $@

$(VENV)/installed-test: $(VENV)/installed
	PYTHONWARNINGS=ignore $(BIN)/pip install --quiet --editable ".[test]"
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info
