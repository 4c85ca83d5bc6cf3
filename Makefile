# Two commands for a new user: `make quickstart` and `make test`. Each sets up .venv first, once.
PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/pip install -c constraints.txt

.PHONY: quickstart test test-all lint types reference clean

# On text of one's own: make quickstart TEXT=my/texts
quickstart: .venv/ready
ifdef TEXT
	$(BIN)/python -m hf_llm.run recipes/own_text.yaml '--corpus.sources=[{path: "$(TEXT)", license: unknown}, {synthetic: small_world, license: cc0-1.0}]'
else
	$(BIN)/python -m hf_llm.run recipes/quickstart.yaml
endif

# A process for each core, each test file in one of them, the longest files first (tests/conftest.py).
test: .venv/tested
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n logical --dist loadfile --no-loadscope-reorder -m "not slow and not gpu"

test-all: .venv/tested
	$(BIN)/python -m pytest

lint: .venv/linter
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

types: .venv/tested
	$(INSTALL) --no-build-isolation -e '.[types]'
	$(BIN)/pyright

# docs/reference.md, the page of every recipe key, from the docstrings of the fields; and the keys of the libraries'
# settings that come with the package (src/hf_llm/core/settings/library_settings.json), from the installed classes.
reference: .venv/tested
	$(BIN)/python -m tests.reference_page

.venv/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "hf_llm needs Python 3.11 or newer; this is " + sys.version.split()[0] + ". Try: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv .venv
	touch $@

.venv/ready: .venv/python pyproject.toml setup.py constraints.txt
	$(INSTALL) torch setuptools wheel
	$(INSTALL) --no-build-isolation -e '.[corpus]'
	touch $@

.venv/tested: .venv/ready
	DS_BUILD_OPS=0 $(INSTALL) --no-build-isolation -e '.[test]'
	touch $@

.venv/linter: .venv/python pyproject.toml constraints.txt
	$(INSTALL) ruff
	touch $@

clean:
	rm -rf .venv build dist
