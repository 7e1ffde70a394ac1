# Every target sets up what it needs first: a machine with Python 3.11 to 3.13 and make is enough.
PYTHON ?= python3
UV := .uv/bin/uv
PACKAGES := attacks datasets_scripts evaluation model_cards modeling_rmcl recipes trainers
export UV_PYTHON := $(PYTHON)
export UV_PYTHON_DOWNLOADS := never

.DEFAULT_GOAL := help
.PHONY: help install quickstart test test-transformers4 test-textattack test-leaderboard docs lint format typecheck build check clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-18s %s\n", $$1, $$2 }' Makefile

install: .venv/.installed ## Set up .venv with the locked dependencies and this checkout

quickstart: install ## Pre-train, make robust, attack and report, in about 10 minutes on two cores
	.venv/bin/rmcl-hub quickstart

test: install ## Run the tests (transformers 5)
	.venv/bin/python -m pytest -n auto --maxprocesses 4

test-transformers4: .venv-transformers4/.installed ## Run the tests that touch Transformers on its 4.57 line
	.venv-transformers4/bin/python -m pytest -n auto --maxprocesses 4 tests/modeling_rmcl tests/attacks tests/datasets_scripts tests/evaluation tests/trainers

test-textattack: .venv-textattack/.installed ## Run the tests of TextAttack's bridge and of the Hub (hub 0.36) beside TextAttack
	.venv-textattack/bin/python -m pytest -n auto --maxprocesses 4 tests/textattack tests/model_cards tests/test_loopback_hub.py tests/test_hub_yaml_checks.py

test-leaderboard: .venv-leaderboard/.installed ## Run the tests of the leaderboard Space in an environment like the Hub's
	.venv-leaderboard/bin/python -m pytest --confcutdir=tests/leaderboard tests/leaderboard

docs: install ## Build the documentation site into build/site; a warning is an error
	NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --strict --quiet

lint: install ## Check style and formatting
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

format: install ## Repair style and formatting
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

typecheck: install build/typecheck ## Check types
	.venv/bin/basedpyright

build: $(UV) ## Build the sdist, and the wheel from it, into dist/
	rm -rf dist
	$(UV) build --quiet

check: lint typecheck build test test-transformers4 test-textattack test-leaderboard ## Run everything that CI runs

clean: ## Remove what the other targets made, but not runs/
	rm -rf .uv .venv .venv-transformers4 .venv-textattack .venv-leaderboard build dist *.egg-info

# uv lives in an environment of its own, so that the machine needs none and .venv holds only what is locked.
$(UV):
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' \
	  || { echo "rmcl-hub needs Python 3.11 to 3.13; name one: make PYTHON=python3.11 $(MAKECMDGOALS)" >&2; exit 1; }
	$(PYTHON) -m venv .uv
	.uv/bin/pip install --quiet --disable-pip-version-check 'uv>=0.9,<1'

.venv/.installed: pyproject.toml uv.lock | $(UV)
	$(UV) sync --frozen
	@touch $@

.venv-transformers4/.installed: pyproject.toml uv.lock | $(UV)
	UV_PROJECT_ENVIRONMENT=.venv-transformers4 $(UV) sync --frozen --no-default-groups --group test --group v4
	@touch $@

.venv-textattack/.installed: pyproject.toml uv.lock | $(UV)
	UV_PROJECT_ENVIRONMENT=.venv-textattack $(UV) sync --frozen --no-default-groups --group test --extra textattack
	@touch $@

.venv-leaderboard/.installed: pyproject.toml uv.lock | $(UV)
	UV_PROJECT_ENVIRONMENT=.venv-leaderboard $(UV) sync --frozen --only-group leaderboard
	@touch $@

# Type checkers do not follow the editable install's import hook; this view shows the folders as one package.
build/typecheck: Makefile
	@rm -rf $@
	@mkdir -p $@/rmcl_hub
	@for folder in $(PACKAGES); do ln -s ../../../$$folder $@/rmcl_hub/$$folder; done
	@for file in src/rmcl_hub/*.py; do ln -s ../../../$$file $@/rmcl_hub/; done
