# Needs CPython 3.10-3.13 (3.11 is what CI runs) and make. Everything else goes into .venv.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
INSTALLED := .venv/.installed
DATA := data/ml-100k
RUN := runs/demo
DEMO_FLAGS :=
# Files of tests share fixtures that take long, so a file stays in one process. One that a test brings down is not begun
# anew: the same test would be its first.
PARALLEL := -n auto --maxprocesses 4 --dist loadfile --max-worker-restart 0

.PHONY: help install demo test test-all lint lock clean
help: ## Show the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(INSTALLED): requirements.lock setup.py
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; (3, 10) <= v <= (3, 13) or sys.exit("$(PYTHON) is Python %d.%d; set PYTHON to a CPython 3.10-3.13, e.g. make PYTHON=python3.11 demo" % v)'
	$(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

install: $(INSTALLED) ## Create .venv from requirements.lock; the other targets do so, too

demo: $(INSTALLED) ## Fetch MovieLens-100K and run every stage on it into runs/demo
	$(BIN)/dnc data ml-100k --out $(DATA)
	$(BIN)/dnc run -c configs/ml-100k.yaml -w $(RUN) $(DEMO_FLAGS)

test: $(INSTALLED) ## Run the tests (some fourteen minutes on two cores)
	$(BIN)/python -m pytest -m "not slow" $(PARALLEL)

test-all: $(INSTALLED) ## Run the slow tests, too
	$(BIN)/python -m pytest $(PARALLEL)

lint: $(INSTALLED) ## Lint, format check, type check
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

lock: ## Resolve requirements.lock anew (needs uv)
	uv pip compile requirements.in --override requirements.overrides --universal --python-version 3.10 \
	  --no-emit-index-url --no-emit-find-links --custom-compile-command "make lock" -o requirements.lock

clean: ## Remove .venv and all runs
	rm -rf .venv runs
