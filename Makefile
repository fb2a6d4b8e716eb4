# `make demo` and `make test` do everything on a bare machine: `make help` lists the rest.

PYTHON_VENV := .venv/bin/python
DEMO_ARGS := dev --exit-when-ready
PYTEST_ARGS ?=
BENCH ?=
MAJORS ?= 17 15
MATRIX_MAJORS ?= 14 15 16 17

.DEFAULT_GOAL := help
.PHONY: help install demo test test-matrix lint format bench clean

help: ## List the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1\t\2/p' $(MAKEFILE_LIST) | while IFS="$$(printf '\t')" read -r name what; do \
		printf '  make %-12s %s\n' "$$name" "$$what"; done

install: ## Make .venv with all that the project needs (PYTHON= chooses the interpreter)
	@scripts/install

demo: install ## Start a compute with local stand-ins for Neon's storage, on Postgres 17
	@$(PYTHON_VENV) scripts/fetch_postgres.py 17 >/dev/null
	.venv/bin/trio-compute $(DEMO_ARGS)

test: install ## Run the tests on Postgres 17 and 15 (PYTEST_ARGS=, MAJORS=)
	@$(PYTHON_VENV) scripts/fetch_postgres.py $(MAJORS) >/dev/null
	@scripts/browser
	TRIO_COMPUTE_TEST_MAJORS="$(MAJORS)" $(PYTHON_VENV) -m pytest $(PYTEST_ARGS)

test-matrix: ## Run the tests on Postgres 14 to 17
	@$(MAKE) --no-print-directory test MAJORS="$(MATRIX_MAJORS)"

lint: install ## Check style and types
	$(PYTHON_VENV) -m ruff check .
	$(PYTHON_VENV) -m ruff format --check .
	$(PYTHON_VENV) -m mypy
	$(PYTHON_VENV) -m mypy scripts/fetch_postgres.py

format: install ## Format the code and mend what ruff can mend
	$(PYTHON_VENV) -m ruff check --fix --exit-zero .
	$(PYTHON_VENV) -m ruff format .

bench: install ## Run a benchmark (BENCH=name; none lists them)
	@$(PYTHON_VENV) scripts/fetch_postgres.py 17 >/dev/null
	$(PYTHON_VENV) -m bench $(BENCH)

clean: ## Remove .venv, caches and what the demo left; the Postgres trees stay
	rm -rf .venv .dev .hypothesis .mypy_cache .ruff_cache dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
