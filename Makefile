# make demo   install what the three parties need and watch a real X-ray being classified
# make test   install what the tests need, then formatter, linter, type checker and all tests

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test check format soak fuzz mutants proto wheel sbom constraints clean

demo: $(VENV)/.base
	$(BIN)/radiopaque demo

test: check
	$(BIN)/python -m pytest -q

check: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m supply_chain.licences

format: $(VENV)/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

soak: $(VENV)/.dev
	$(BIN)/python -m pytest -q -m soak

# Hours. Mutations of the corpus, then coverage-guided inputs where there is a wheel of atheris.
fuzz: $(VENV)/.dev
	$(BIN)/python -m tests.fuzz
	-$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[fuzz]'
	! $(BIN)/python -c 'import atheris' || $(BIN)/python -m tests.fuzz --engine atheris --seconds 300

# Takes guards out of copies of the tree, one by one; each has to be noticed by its tests.
mutants: $(VENV)/.dev
	$(BIN)/python -m tests.mutants

# The same commit gives the same bytes. Into dist/, with what it needs as a bill of materials.
wheel: $(VENV)/.dev
	$(BIN)/python -m supply_chain.wheel

sbom: $(VENV)/.dev
	$(BIN)/python -m supply_chain.sbom

# Pins what is installed in .venv now, after the tests have passed with it.
constraints: $(VENV)/.dev
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	sh supply_chain/constraints.sh $(BIN)/python

# Regenerates the committed stubs; needs grpcio-tools 1.81.1 in the Python named by PROTO_PYTHON.
proto:
	sh proto/generate.sh $(PROTO_PYTHON)

# Installed anew only when pyproject.toml has changed.
$(VENV)/.base: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	touch $@

$(VENV)/.dev: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	  --no-deps --require-hashes --requirement constraints/crypten.txt
	touch $@ $(VENV)/.base

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
