# Two commands for a new user: `make quickstart` and `make test`. Both set up .venv first, once.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: quickstart test test-all lint clean

quickstart: .venv/ready
	$(BIN)/python -m hf_llm.run recipes/quickstart.yaml

# A process for each core, each test file in one of them.
test: .venv/tested
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n logical --dist loadfile -m "not slow and not gpu"

test-all: .venv/tested
	$(BIN)/python -m pytest

lint: .venv/tested
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "hf_llm needs Python 3.11 or newer; this is " + sys.version.split()[0] + ". Try: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -c constraints.txt torch setuptools wheel
	DS_BUILD_OPS=0 $(BIN)/pip install -c constraints.txt --no-build-isolation -e '.[deepspeed]'
	touch $@

.venv/tested: .venv/ready
	$(BIN)/pip install -c constraints.txt --no-build-isolation -e '.[deepspeed,ray,optimizers,test]'
	touch $@

clean:
	rm -rf .venv build dist
