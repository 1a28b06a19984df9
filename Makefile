# Everything runs in .venv, made on first use. `make` alone lists the targets.
PYTHON ?= python3
BIN := .venv/bin
PYTEST := $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal

.DEFAULT_GOAL := help
.PHONY: help demo test slow lint check docs fuzz road release console clean

# How long each fuzzer runs.
SECONDS ?= 60

help: ## List the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 18

demo: .venv/ready ## Train three captioning styles on the shipped miniature and compare them on one image
	$(BIN)/python blip2_captioning.py

test: .venv/ready-dev ## Run the tests
	$(PYTEST)

slow: .venv/ready-dev ## Run the tests that take whole processes half a minute and more
	$(PYTEST) -m slow --timeout 400

lint: .venv/ready-dev ## Check style and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

fuzz: .venv/ready-dev ## Give every reader damaged and hostile input, SECONDS=60 each
	@failed=0; for name in $(patsubst fuzz/%.py,%,$(filter-out fuzz/__init__.py fuzz/harness.py,$(wildcard fuzz/*.py))); do \
		$(BIN)/python -m fuzz.$$name --seconds $(SECONDS) || failed=1; done; exit $$failed

road: ## Run the first script as its readers do: a new environment, the requirement file, nothing else
	rm -rf build/road
	$(PYTHON) -m venv build/road
	build/road/bin/python -m pip install --quiet --requirement requirements_blip2.txt
	LORAX_VLM_HOME=build/road/home build/road/bin/python blip2_captioning.py --out build/road/comparison.png

release: ## Build sdist and wheel, check what they say of themselves, and use the wheel from another folder
	rm -rf dist build/release build/wheel build/elsewhere
	$(PYTHON) -m venv build/release
	build/release/bin/python -m pip install --quiet build==1.6.1 twine==7.0.0
	build/release/bin/python -m build --outdir dist .
	build/release/bin/python -m twine check --strict dist/*
	$(PYTHON) -m venv build/wheel
	build/wheel/bin/python -m pip install --quiet --requirement requirements_blip2.txt
	build/wheel/bin/python -m pip install --quiet --no-deps dist/*.whl
	mkdir -p build/elsewhere
	cd build/elsewhere && export LORAX_VLM_HOME=home PATH=../wheel/bin:$$PATH && lorax-vlm --version && \
		lorax-vlm scenes export photos --style concise && \
		lorax-vlm train short --data photos --style concise --steps 4 && \
		lorax-vlm caption $$(ls photos/*.png | head -1) --adapter short

check: lint test slow ## Everything CI checks

docs: .venv/ready-dev ## Write docs/cli.md, the schema of exchange.json and the picture of the rooms anew from the code
	$(BIN)/python -m docs.write_cli_reference
	$(BIN)/python -m docs.write_schema
	$(BIN)/python -m docs.write_architecture

console: .venv/ready-dev ## Run what README and docs quote the output of, and write it there anew
	$(BIN)/python -m docs.write_console

clean: ## Remove the environment and everything built
	rm -rf .venv build dist runs .pytest_cache .mypy_cache .ruff_cache

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/ready: requirements_blip2.txt pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --quiet --requirement requirements_blip2.txt
	$(BIN)/python -m pip install --quiet --no-deps --config-settings editable_mode=compat --editable .
	@touch $@

.venv/ready-dev: requirements_dev.txt .venv/ready
	$(BIN)/python -m pip install --quiet --requirement requirements_dev.txt
	@touch $@
