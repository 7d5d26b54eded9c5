# Each target works from a bare clone: it makes .venv where that is missing, and installs nothing twice.

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
INSTALL := $(RUN) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo web docs test test-slow test-web crash soak lint format eval results mini bench choices

demo: $(VENV)/.installed  ## build the demo index and ask five questions
	$(RUN) -m examples.demo

web: $(VENV)/.installed  ## ask the demo's documents, or INDEX, in a browser, at http://127.0.0.1:8000 or PORT
	$(RUN) -m examples.qa_web $(if $(PORT),--port $(PORT)) $(if $(INDEX),--index "$(INDEX)")

test: $(VENV)/.installed  ## run the tests, but for those that take minutes, and those that need a browser
	$(RUN) -m pytest -m "not slow and not web"

test-slow: $(VENV)/.installed  ## run those that take minutes: every real text, golden vectors, precision
	$(RUN) -m pytest -m slow

test-web: $(VENV)/.installed-web  ## run those that need Chromium, and the HTTP API under generated requests
	$(RUN) -m pytest -m web

docs: $(VENV)/.installed-docs  ## build the guides and the API reference into runs/docs
	$(VENV)/bin/sphinx-build --fail-on-warning --quiet -b html docs runs/docs

crash: $(VENV)/.installed  ## kill a writer of an index 300 times, and check what it left
	$(RUN) -m tests.crash --kills 300

soak: $(VENV)/.installed  ## search an index for five minutes while it is written, and check every answer
	$(RUN) -m tests.soak --seconds 300

lint: $(VENV)/.installed-lint  ## check style and types
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

format: $(VENV)/.installed-lint  ## rewrite what can be rewritten
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

# Folders in BEIR layout; those that are prepared, and the demo corpus, are measured without it.
DATA ?= ../shared/data
EVAL := -m evals.run --all --offline $(if $(shell test -d "$(DATA)" && echo yes),--data-root "$(DATA)")

eval: $(VENV)/.installed  ## measure all systems on all that is here; the page is runs/evals/report.html
	$(RUN) $(EVAL)

results: $(VENV)/.installed  ## write evals/results anew, and the tables of README that are made from them
	$(RUN) $(EVAL) --json evals/results/all.json
	$(RUN) -m evals.answerability --data examples/corpus --split test --name demo \
		--json evals/results/answerability/demo.json
	$(RUN) -m evals.answerability --data "$(DATA)/jsquad" --split dev --limit 500 \
		--json evals/results/answerability/jsquad.json
	$(RUN) -m evals.studies query-length --dataset demo --data "$(DATA)/niilc" --data "$(DATA)/lawqa" \
		--out evals/results/studies
	$(RUN) -m evals.studies english --dataset demo --out evals/results/studies
	$(RUN) -m evals.studies teachers --ablation training/ablations/teacher.json --out evals/results/studies
	$(RUN) -m evals.tables

mini: $(VENV)/.installed  ## try every stage of the recipe of the bundled model, on 200 examples of DATA
	DATA="$(DATA)" training/recipes/run.sh mini --limit 200

PEERS := pylate sentence-transformers fast-plaid lancedb

bench: $(VENV)/.installed $(PEERS:%=.venv-%/.installed)  ## time the encoder and the index beside their peers
	$(RUN) -m benchmarks.encoder --pylate .venv-pylate/bin/python \
		--sentence-transformers .venv-sentence-transformers/bin/python --results benchmarks/results
	$(RUN) -m benchmarks.memory --passages 2000 --passages 10000 --passages 100000 --results benchmarks/results
	$(RUN) -m benchmarks.index --pylate .venv-pylate/bin/python --fast-plaid .venv-fast-plaid/bin/python \
		--lancedb .venv-lancedb/bin/python --results benchmarks/results
	$(RUN) -m benchmarks.search --results benchmarks/results
	$(RUN) -m benchmarks.tables

choices: $(VENV)/.installed  ## measure what each setting of the index costs
	$(RUN) -m benchmarks.choices --results benchmarks/results
	$(RUN) -m benchmarks.tables

# torch by itself and first: left to another package's requirements, pip would take its newest release.
$(VENV)/.installed: pyproject.toml constraints.txt
	@echo "Making $(VENV): this takes a few minutes, once."
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check "pip>=25.1"
	$(INSTALL) $$(grep '^torch==' constraints.txt)
	$(INSTALL) --editable '.[all]' --group test
	@touch $@

$(VENV)/.installed-web: $(VENV)/.installed
	$(INSTALL) --group web-test
	@touch $@

$(VENV)/.installed-docs: $(VENV)/.installed
	$(INSTALL) --group docs
	@touch $@

$(VENV)/.installed-lint: $(VENV)/.installed
	$(INSTALL) --group lint
	@touch $@

# A peer pins other releases than ours, so each has an environment; its file names all that it needs. Where it names
# a torch, that one comes with what it depends on.
.venv-%/.installed: benchmarks/peers/%.txt constraints.txt
	@echo "Making .venv-$*: this takes a few minutes, once."
	$(PYTHON) -m venv .venv-$*
	.venv-$*/bin/python -m pip install --quiet --disable-pip-version-check "pip>=25.1"
	.venv-$*/bin/python -m pip install --quiet --disable-pip-version-check $$(grep -h '^torch==' $< constraints.txt | head -1)
	.venv-$*/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --requirement $<
	@touch $@
