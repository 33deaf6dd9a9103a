# make demo   train all three domains on real data and write demo/index.html
# make test   run the tests          make lint   ruff and mypy          make wheel   build the distribution
# Each makes .venv on its first run. PYTHON=python3.12 picks another interpreter.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check
# Two busy thread pools on two cores cost more than they give.
JOBS ?= auto

.PHONY: demo test test-gpu lint wheel clean

demo: .venv/.installed
	@GOMP_SPINCOUNT=$${GOMP_SPINCOUNT:-1000} $(BIN)/python examples/demo/run.py --output demo

test: .venv/.installed-test
	@$(BIN)/python -m pytest -n $(JOBS) --dist worksteal $(ARGS)

# On a machine with a CUDA device; every other test skips itself there as it does elsewhere.
test-gpu: .venv/.installed-test
	@$(BIN)/python -m pytest -m gpu $(ARGS)

lint: .venv/.installed-lint
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

wheel: .venv/.installed-test
	@$(BIN)/python -m build --no-isolation --outdir dist
	@ls -1 dist

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "seqgraph needs Python 3.11 or newer; this is " + sys.version.split()[0] + ". Try: make PYTHON=python3.11")'
	@echo "[1/2] making .venv"
	@$(PYTHON) -m venv .venv
	@$(PIP) --upgrade pip

.venv/.installed: .venv/bin/python pyproject.toml constraints.txt
	@echo "[2/2] installing seqgraph[all] into .venv (a few minutes the first time)"
	@$(PIP) -c constraints.txt -e '.[all]'
	@touch $@

.venv/.installed-test: .venv/.installed
	@echo "installing what the tests need"
	@$(PIP) -c constraints.txt --group test
	@touch $@

.venv/.installed-lint: .venv/.installed-test
	@echo "installing ruff and mypy"
	@$(PIP) -c constraints.txt --group lint
	@touch $@

clean:
	rm -rf .venv dist demo runs
