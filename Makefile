# One command each; every target makes the environment it needs. See `make help`.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
KERNELS := $(VENV)/.compiled
BENCH_STAMP := $(VENV)/.installed-bench
DOCS_STAMP := $(VENV)/.installed-docs
CONSTRAINTS ?= constraints.txt
TESTS ?=
JOBS ?= auto
VERSION ?= $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' convexlayer/__init__.py)
CHECK ?= bash .ci/run
SOAK ?= 1800
SOURCES := convexlayer server clients/python tests examples benchmarks docs .ci

# What compiled kernels compute, and what could differ from processor to processor.
PROCESSOR_TESTS := tests/test_single_elements.py tests/interior_point tests/linalg tests/cones tests/diff/test_polish.py \
	tests/solvers/test_solver_contract.py -k "not test_solver_contract or test_a_batch_equals_its_elements_alone"
# They meet every package that runs with the library, the server and the client.
VERSION_TESTS := tests/canon/test_against_cvxpy.py tests/canon/test_discipline.py tests/canon/test_document.py \
	tests/canon/test_quadratic.py tests/canon/test_workarounds.py tests/canon/test_traps.py \
	tests/cones/test_exponential_cone.py tests/linalg tests/interior_point/test_lanes.py tests/solvers/test_solver_contract.py \
	tests/diff/test_exact.py tests/diff/test_diffcp.py tests/layers/test_closed_forms.py tests/gallery/test_registry.py \
	tests/server/test_routes.py tests/server/test_operations.py tests/server/test_safetensors.py tests/server/test_gate.py \
	tests/server/test_cli.py tests/client/test_client.py tests/test_packaging.py

# A minute's part: the cheaper tests of every package.
FAST_TESTS := tests/test_architecture.py tests/test_form.py tests/test_lazy.py tests/test_arguments.py tests/test_program.py \
	tests/test_products.py tests/test_solution.py tests/runtime/test_threads.py tests/runtime/test_kernel_targets.py \
	tests/canon/test_against_cvxpy.py tests/canon/test_discipline.py tests/canon/test_traps.py \
	tests/canon/test_presolve_rows.py tests/cones tests/linalg/test_laned.py tests/linalg/test_refined.py \
	tests/interior_point/test_lanes.py tests/interior_point/test_crossover.py tests/solvers/test_registry.py \
	tests/solvers/test_certification.py tests/solvers/test_components.py tests/diff/test_exact.py tests/diff/test_report.py \
	tests/diff/test_second_order.py tests/layers/test_closed_forms.py tests/layers/test_layer_call.py \
	tests/layers/test_failures.py tests/nodes/closed_form tests/nodes/declarative/test_formulas.py \
	tests/nodes/fixed_point/test_bregman.py tests/nodes/implicit tests/nodes/bilevel/test_gradient_form.py \
	tests/gallery/test_registry.py tests/server/test_routes.py tests/server/test_operations.py tests/server/test_scheduler.py \
	tests/server/test_gate.py tests/server/test_admission.py tests/server/test_grammar.py tests/server/test_safetensors.py \
	tests/server/store tests/client/test_client.py tests/client/test_retries.py tests/client/test_expression.py \
	tests/docs/test_site.py tests/benchmarks/test_suite.py

.DEFAULT_GOAL := help
.PHONY: help venv format lint typecheck test test-fast coverage test-processors test-lowest test-newest demo gallery bench \
	bench-nodes reliability scales serve docs build check-wheels image release clean

help:  ## List the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

venv: $(KERNELS)  ## Make the environment: both distributions, editable, with every extra but bench and docs

# constraints.txt pins what every install resolves to, so that no solver's dependency brings another torch.
$(STAMP): pyproject.toml clients/python/pyproject.toml $(CONSTRAINTS)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint $(CONSTRAINTS) \
		--editable '.[all]' --editable './clients/python[cvxpy]'
	touch $@

$(KERNELS): $(STAMP)
	$(BIN)/convexlayer compile
	touch $@

format: $(STAMP)  ## Rewrite the sources in the house style
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

lint: $(STAMP)  ## Check style and formatting
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)

typecheck: $(STAMP)  ## Check types, strictly
	$(BIN)/mypy

test: $(KERNELS)  ## Run the tests (TESTS=... only these; JOBS=n in n processes, by default one per core)
	$(BIN)/python -m pytest --numprocesses $(JOBS) $(TESTS)

test-fast: $(KERNELS)  ## Run a part of the tests that meets every package, in about a minute
	$(BIN)/python -m pytest --numprocesses $(JOBS) $(FAST_TESTS)

coverage: $(KERNELS)  ## Run the tests and list the lines and branches that none of them runs
	$(BIN)/python -m coverage erase
	$(BIN)/python -m coverage run -m pytest --numprocesses $(JOBS) $(TESTS)
	$(BIN)/python -m coverage combine --quiet
	$(BIN)/python -m coverage report

test-processors: $(KERNELS)  ## Run the tests that could differ as on older processors: x86-64-v2, x86-64-v3
	bash .ci/test-processors $(BIN)/python $(PROCESSOR_TESTS)

test-lowest:  ## Run some of the tests with the lowest versions that pyproject.toml declares (in .venv-lowest)
	$(MAKE) VENV='$(VENV)-lowest' CONSTRAINTS=lowest.txt TESTS='$(VERSION_TESTS)' test

test-newest: build/newest.txt  ## Run some of the tests with the newest versions that pyproject.toml allows (in .venv-newest)
	$(MAKE) VENV='$(VENV)-newest' CONSTRAINTS=build/newest.txt TESTS='$(VERSION_TESTS)' test

# torch alone is pinned: a resolver that is free to choose fetches its builds for CUDA.
build/newest.txt: constraints.txt
	mkdir -p build
	grep '^torch==' $< >$@

demo: $(KERNELS)  ## Fit lasso weights through the layer, then through a server (examples/output)
	$(BIN)/python examples/fit_lasso_weights.py

gallery: $(KERNELS)  ## Run the experiments of the papers: figures, numbers, claims beside ours (examples/output/gallery)
	$(BIN)/convexlayer gallery run --all --output examples/output/gallery

bench: $(BENCH_STAMP)  ## Measure against the peers: times, accuracy, memory, scaling (benchmarks/output)
	$(BIN)/python -m benchmarks

bench-nodes: $(BENCH_STAMP)  ## Measure the nodes against lstsq, unrolling, POT and ddn if importable (benchmarks/output/nodes.*)
	$(BIN)/python -m benchmarks.nodes

reliability: $(KERNELS)  ## Measure how the service bears load and misfortune: a table (an hour; SOAK=60 for a short soak)
	$(BIN)/python -m benchmarks.reliability --soak $(SOAK)

# qpth asks for a NumPy below 2 and libdqp for commercial solvers; both run with what is here.
$(BENCH_STAMP): $(KERNELS)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[bench]'
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps qpth libdqp
	touch $@

scales: $(KERNELS)  ## Measure errors and reported statuses in all units: tables (an hour)
	$(BIN)/python -m benchmarks.scales

serve: $(KERNELS)  ## Serve on http://127.0.0.1:8000
	$(BIN)/convexlayer serve

docs: $(DOCS_STAMP)  ## Build the documentation site into site/, warnings are errors
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

$(DOCS_STAMP): $(STAMP)
	$(BIN)/python -m pip install --quiet --constraint $(CONSTRAINTS) --editable '.[docs]'
	touch $@

build: $(STAMP)  ## Build the wheels of both distributions into dist/
	rm -rf dist
	$(BIN)/python -m build --wheel --no-isolation --outdir dist .
	$(BIN)/python -m build --wheel --no-isolation --outdir dist clients/python

check-wheels: build  ## Install both wheels in a clean environment and use them
	PYTHON='$(PYTHON)' bash .ci/check-wheels dist

image:  ## Build the image of the service, labelled with the version
	docker build --file docker/Dockerfile --build-arg VERSION='$(VERSION)' --tag 'convexlayer:$(VERSION)' .

release: $(STAMP)  ## Check, set version and date, build, commit and tag; pushes nothing (VERSION=1.2.3)
	$(BIN)/python .ci/release.py '$(VERSION)' --check '$(CHECK)'

clean:  ## Remove what the tools leave, the environment included
	rm -rf .venv .venv-lowest .venv-newest build dist site examples/output benchmarks/output \
		.coverage .coverage.* .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
