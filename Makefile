# Named tasks. Each makes .venv first if need be; `make` alone lists them.
.DEFAULT_GOAL := help
.PHONY: help install quickstart test long lint format docs structure

help:  ## lists the tasks
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' Makefile

install:  ## installs everything that contributors need into .venv
	@bash -c 'source scripts/environment.sh && ensure_environment test,dev,docs,export </dev/null'

quickstart:  ## trains and compares small networks, in minutes
	@bash scripts/quickstart.sh

test:  ## checks style, types and imports, and runs the tests
	@bash scripts/test.sh

long: install  ## runs the tests that take minutes each
	@.venv/bin/python -m pytest -q -m long

lint: install  ## checks style, types and imports
	@.venv/bin/pre-commit run --all-files

format: install  ## mends what ruff can mend
	@.venv/bin/python -m ruff check --fix
	@.venv/bin/python -m ruff format

docs: install  ## builds the documentation as a site, in site/
	@.venv/bin/mkdocs build --strict

structure: install  ## counts imports, lines and files to read
	@.venv/bin/python scripts/structure.py
