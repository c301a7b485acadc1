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
	$(BIN)/mypy

aot: .venv/.full
	$(BIN)/python -m kernels.aot --out docs/aot.csv

bench: .venv/.full
	$(BIN)/pytest benchmarks --benchmark-only

gpu:
	$(PYTHON) -m benchmarks.gpu --out $(or $(OUT),gpu-results) --slice $(or $(SLICE),all) $(OPTIONS)

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

.venv-oldest/.full: constraints-oldest.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed and none was found. Name one: make PYTHON=/path/to/python3" >&2; exit 1; }
	$(PYTHON) -m venv .venv-oldest
	@echo "installing the oldest Triton into .venv-oldest (one to two minutes) ..."
	PIP_DISABLE_PIP_VERSION_CHECK=1 .venv-oldest/bin/python -m pip install --quiet -c constraints-oldest.txt \
		torch triton numpy fvcore hypothesis pytest pytest-xdist
	@touch $@

clean:
	rm -rf .venv .venv-oldest build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
