# `make demo` and `make test` need Python >= 3.11 and make, nothing else: each sets up a virtual
# environment from requirements.lock at its first run and reuses it afterwards.
#
#   make test                      lint, types, budgets, the tests
#   make test-long                 the same with the tests that take long
#   make test-torch                install PyTorch (large), transformers, Haiku, diffrax; compare, run their pages
#   make demo                      train a small language model          ARGS="…": its options
#   make docs                      build the manual in build/site; docs-serve: show it while it is changed
#   make test-docs                 build it, follow every link, use it in a browser (Chromium)
#   make recipes                   run the examples and keep what they print and draw for the manual
#   make dist                      build wheel and sdist; test-dist: install and use both
#   make bench                     measure refax beside its peers        ARGS="…": its options
#   make fuzz                      random programs, new ones until Ctrl-C
#   make format | lint | lock | clean
#
# PYTHON=python3.13 make test uses that Python, in an environment of its own (.venv-python3.13).

PYTHON ?= python3
VENV ?= .venv$(addprefix -,$(lastword $(notdir $(filter-out python3,$(PYTHON)))))
JOBS ?= 2
ARGS ?=

RUN = "$(VENV)/bin/python"
RUN_DOCS = NO_MKDOCS_2_WARNING=1 "$(VENV)-docs/bin/python"
.NOTPARALLEL:
.PHONY: help setup test test-long test-torch fuzz demo bench lint types budgets format lock clean
.PHONY: setup-docs docs docs-serve test-docs recipes dist test-dist

help:
	@sed -n '/^#/!q; s/^# \{0,1\}//p' Makefile

setup:
	@command -v "$(PYTHON)" >/dev/null 2>&1 || { \
	  echo "refax: no '$(PYTHON)' here: install Python 3.11 or newer, or say which: make PYTHON=…" >&2; \
	  exit 1; }
	@"$(PYTHON)" tools/set_up_venv.py "$(VENV)"

# One pytest run, last, so that its summary is the last line printed. Of its environment tells
# tests/conftest.py.
test: lint types budgets
	@REFAX_TESTS=quick $(RUN) -m pytest -n $(JOBS) -m "not slow" --doctest-modules tests src/refax $(ARGS)

test-long: lint types budgets
	@$(RUN) -m pytest -n $(JOBS) --doctest-modules tests src/refax $(ARGS)

# pip finds the build for the CPU where PIP_EXTRA_INDEX_URL names the place of one.
test-torch: setup
	@$(RUN) -m pip install --quiet --disable-pip-version-check $$($(RUN) -c "import tomllib; \
	  groups = tomllib.load(open('pyproject.toml', 'rb'))['dependency-groups']; \
	  print(*groups['torch'], *groups['haiku'], *groups['diffrax'])")
	@$(RUN) -m pytest -n $(JOBS) tests/weights/test_torch*.py \
	  tests/test_readme.py::test_code_of_another_library_on_a_page_runs \
	  "tests/test_readme.py::test_python_of_a_page_prints_what_it_says[docs/recipes/neural_ode.md]" $(ARGS)

fuzz: setup
	@while REFAX_FUZZ=1000 $(RUN) -m pytest -q tests/fuzz $(ARGS); do :; done

demo: setup
	@$(RUN) examples/train_language_model.py $(ARGS)

bench: setup
	@$(RUN) -m benchmarks $(ARGS)

setup-docs:
	@"$(PYTHON)" tools/set_up_venv.py "$(VENV)-docs" requirements-docs.lock

docs: setup-docs
	@$(RUN_DOCS) -m mkdocs build

docs-serve: setup-docs
	@$(RUN_DOCS) -m mkdocs serve $(ARGS)

test-docs: docs
	@$(RUN_DOCS) -m pytest --noconftest tests/manual/test_site.py tests/manual/test_browser.py $(ARGS)

recipes: setup
	@$(RUN) -m tools.manual.recipes $(ARGS)

dist: setup
	@rm -rf dist
	@$(RUN) -m hatchling build

test-dist: dist
	@REFAX_DIST=dist $(RUN) -m pytest tests/manual/test_dist.py $(ARGS)

lint: setup
	@$(RUN) -m ruff check .
	@$(RUN) -m ruff format --check .

types: setup
	@$(RUN) -m pyright --pythonpath $(RUN)
	@$(RUN) -m mypy

budgets: setup
	@$(RUN) tools/check_budgets.py

format: setup
	@$(RUN) -m ruff check --fix .
	@$(RUN) -m ruff format .

# Keeps the pins that still fit; `make lock ARGS=--upgrade` takes the newest releases.
lock: setup
	@$(RUN) -m uv pip compile pyproject.toml --group dev --group demo --group peers \
	  --universal --python-version 3.11 --generate-hashes --no-header --quiet \
	  --output-file requirements.lock $(ARGS)
	@$(RUN) -m uv pip compile --group docs \
	  --universal --python-version 3.11 --generate-hashes --no-header --quiet \
	  --output-file requirements-docs.lock $(ARGS)
	@! grep -nE '://|^-' requirements.lock requirements-docs.lock || \
	  { echo "a lock names a place" >&2; exit 1; }

clean:
	rm -rf .venv .venv-* .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist
	find src tests tools -name __pycache__ -type d -prune -exec rm -rf {} +
