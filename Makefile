# A fresh machine needs Python >= 3.10 and make; everything else goes into .venv at the first call.
#   make demo         the whole pipeline on the embedded Hopper set, beside naive fine-tuning
#   make test         the fast tests            make test-slow   the learning tests
#   make test-extras  what is skipped without Optuna and W&B, which it installs; make test-ray   without Ray
#   make lint         ruff and mypy             make all-checks  lint, test, dist, docs
#   make dist         sdist and wheel, checked  make docs        the site, into site/
#   make clean        build products and .venv, never your runs
#
# PYTHON=python3.12 picks the interpreter. PIP_ARGS and pip's own environment variables reach pip,
# for instance an index with CPU-only builds of torch. PIP_QUIET= shows what pip does.

PYTHON    ?= python3
VENV      ?= .venv
PIP_ARGS  ?=
PIP_QUIET ?= -qq
DEMO_DIR  ?= demo
DIST_DIR  ?= dist
WORKERS   ?= 2

BIN   := $(VENV)/bin
STAMP := $(VENV)/.installed
# Workers that each use every core slow one another down, and a fixed thread count keeps results bit-equal.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

.DEFAULT_GOAL := help
.PHONY: help install demo test test-extras test-ray test-slow lint dist docs all-checks clean

help:
	@sed -n '2,7s/^#   //p' Makefile

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || { \
	  found=$$($(PYTHON) -V 2>&1) || found="not there"; \
	  echo "make: o2o-lightning needs Python 3.10 or newer, and '$(PYTHON)' is $$found." \
	       "Install one, or name it: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV) || { \
	  echo "make: '$(PYTHON) -m venv' failed. On Debian and Ubuntu install the package python3-venv, then try again." >&2; \
	  exit 1; }
	@echo "Installing into $(VENV); the first time takes some minutes."
	@$(BIN)/python -m pip install $(PIP_QUIET) --disable-pip-version-check --no-input $(PIP_ARGS) \
	  -c constraints.txt -e '.[dev]' || { \
	  echo "make: the installation failed. 'make install PIP_QUIET=' says more." >&2; exit 1; }
	@touch $@

demo: $(STAMP)
	$(BIN)/o2o demo --run_dir $(DEMO_DIR)

test: $(STAMP)
	$(PYTEST)

test-extras: $(STAMP)
	@$(BIN)/python -m pip install $(PIP_QUIET) --disable-pip-version-check --no-input $(PIP_ARGS) \
	  -c constraints.txt -e '.[optuna,wandb]'
	$(PYTEST) tests/test_sweep_search.py tests/test_loggers.py

# Apart: Ray's launcher wants another cloudpickle than joblib's, and an older python-dateutil.
test-ray:
	@$(PYTHON) -m venv $(VENV)-ray
	@grep -vE '^(cloudpickle|python-dateutil)==' constraints.txt > $(VENV)-ray/constraints.txt
	@$(VENV)-ray/bin/python -m pip install $(PIP_QUIET) --disable-pip-version-check --no-input $(PIP_ARGS) \
	  -c $(VENV)-ray/constraints.txt -e '.[ray]' pytest hypothesis
	$(VENV)-ray/bin/python -m pytest tests/test_sweep_launchers.py

test-slow: $(STAMP)
	$(PYTEST) -m "slow and not gpu" -rP

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/mypy

# The wheel is built from the sdist, as an installer would where no wheel fits.
dist: $(STAMP)
	@rm -f $(DIST_DIR)/o2o_lightning-*
	$(BIN)/python -m build --no-isolation --outdir $(DIST_DIR)
	$(BIN)/twine check --strict $(DIST_DIR)/o2o_lightning-*

docs: $(STAMP)
	@$(BIN)/python -m pip install $(PIP_QUIET) --disable-pip-version-check --no-input $(PIP_ARGS) -c constraints.txt -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

all-checks: lint test dist docs

clean:
	rm -rf build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis $(VENV) $(VENV)-ray
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
