# Each target works from a bare clone: it makes .venv where that is missing, and installs nothing twice.

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
INSTALL := $(RUN) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test lint format eval

demo: $(VENV)/.installed  ## build the demo index and ask five questions
	$(RUN) -m examples.demo

test: $(VENV)/.installed  ## run all tests
	$(RUN) -m pytest

lint: $(VENV)/.installed-lint  ## check style and types
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

format: $(VENV)/.installed-lint  ## rewrite what can be rewritten
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

eval: $(VENV)/.installed  ## measure all systems on the demo corpus
	$(RUN) -m evals.run --data examples/corpus --split test \
		--system bm25 --system jacolbert --system jacolbert-exact --json evals/results/demo.json

# torch by itself and first: left to another package's requirements, pip would take its newest release.
$(VENV)/.installed: pyproject.toml constraints.txt
	@echo "Making $(VENV): this takes a few minutes, once."
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check "pip>=25.1"
	$(INSTALL) $$(grep '^torch==' constraints.txt)
	$(INSTALL) --editable '.[all]' --group test
	@touch $@

$(VENV)/.installed-lint: $(VENV)/.installed
	$(INSTALL) --group lint
	@touch $@
