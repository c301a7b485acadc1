# make demo      the light core, then one answer
# make test      everything, then linters, types and tests
# make test-all  also the slow tests, those on a Ray cluster of this machine or in a browser, and those of test-oldest
# make test-oldest  the kernels' tests with the oldest Triton that they support, in an environment of its own
# make aot       every Triton kernel compiled without a GPU: registers, spills, shared memory, matrix instructions
# make gpu       all that is measured on a machine with a GPU, with its own python3; SLICE=, OUT=, OPTIONS= (docs/gpu.md)
# All but make gpu use .venv and only need Python 3.11 or newer.

PYTHON ?= $(firstword $(foreach p,python3 python3.13 python3.12 python3.11 python,$(shell $(p) -c 'import sys; sys.version_info >= (3, 11) and print("$(p)")' 2>/dev/null)))
BIN := .venv/bin
# pip's own notices say nothing about this project.
PIP := PIP_DISABLE_PIP_VERSION_CHECK=1 $(BIN)/python -m pip install --quiet --no-compile -c constraints.txt
# pip would compile on one core, tests of other packages included, and plotly, of which only a script is read. What
# fails here is compiled when it is imported.
COMPILE := $(BIN)/python -m compileall -qq -j 0 -x '/tests?/|/plotly/' .venv/lib estimator kernels training || true

# The folders as they are imported, `cegain` over all of them, for what reads a tree and not an installation. Links are
# made here and never committed: a checkout on Windows would break them.
VIEW := rm -rf .view && mkdir -p .view/cegain && for f in estimator/* kernels training benchmarks; do ln -s ../../$$f .view/cegain/; done

.PHONY: demo test test-all test-oldest lint aot bench gpu clean

demo: .venv/.light
	$(BIN)/ceg-estimate --algo moe --flops 1e24

test: .venv/.full lint
	$(BIN)/pytest -n 2 -m "not slow"

test-all: .venv/.sweeps .venv/.browser lint test-oldest
	$(BIN)/pytest -n 2

test-oldest: .venv-oldest/.full
	.venv-oldest/bin/python -m pytest -n 2 -m "not slow" tests/kernels

lint: .venv/.full
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@$(VIEW)
	$(BIN)/mypy

aot: .venv/.full
	$(BIN)/python -m cegain.kernels.aot --out docs/aot.csv

bench: .venv/.full
	$(BIN)/pytest benchmarks --benchmark-only

# Nothing is installed there: that python3 has what it needs.
gpu:
	@$(VIEW)
	PYTHONPATH=$(CURDIR)/.view$(if $(PYTHONPATH),:$(PYTHONPATH)) $(PYTHON) -m cegain.benchmarks.gpu --out $(or $(OUT),gpu-results) --slice $(or $(SLICE),all) $(OPTIONS)

.venv/.python:
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed and none was found. Name one: make PYTHON=/path/to/python3" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	@touch $@

.venv/.light: .venv/.python pyproject.toml constraints.txt
	@echo "installing the light core into .venv (about half a minute) ..."
	$(PIP) -e .
	@$(COMPILE)
	@touch $@

.venv/.full: .venv/.python pyproject.toml constraints.txt
	@echo "installing everything into .venv (one to two minutes) ..."
	$(PIP) -e '.[torch,dev]'
	@$(COMPILE)
	@touch .venv/.light $@

.venv/.sweeps: .venv/.full
	@echo "installing Ray into .venv (about twenty seconds) ..."
	$(PIP) -e '.[sweeps]'
	@$(COMPILE)
	@touch $@

.venv/.browser: .venv/.full
	@echo "installing Playwright into .venv, and a browser where there is none (up to a minute) ..."
	@{ $(PIP) -e '.[browser]' && { \
		command -v chromium || command -v chromium-browser || command -v google-chrome || command -v google-chrome-stable || \
		$(BIN)/playwright install chromium-headless-shell || \
		{ test "$$(id -u)" = 0 && command -v apt-get && apt-get install -y chromium; }; }; } >/dev/null 2>&1 || \
		echo "no browser could be installed: the tests of the report's page will be skipped"
	@touch $@

.venv-oldest/.full: constraints-oldest.txt pyproject.toml
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed and none was found. Name one: make PYTHON=/path/to/python3" >&2; exit 1; }
	$(PYTHON) -m venv .venv-oldest
	@echo "installing the oldest Triton into .venv-oldest (one to two minutes) ..."
	PIP_DISABLE_PIP_VERSION_CHECK=1 .venv-oldest/bin/python -m pip install --quiet -c constraints-oldest.txt \
		torch triton numpy fvcore hypothesis pytest pytest-xdist
	PIP_DISABLE_PIP_VERSION_CHECK=1 .venv-oldest/bin/python -m pip install --quiet --no-deps -e .
	@touch $@

clean:
	rm -rf .venv .venv-oldest .view build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
