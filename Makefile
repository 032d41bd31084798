# `make help` lists the targets. `make demo` and `make test` set everything up first.

PYTHON ?= $(shell for p in python3 python3.11 python3.12 python3.13; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null \
	&& echo $$p && break; done)
BIN := .venv/bin
PINS := infra/requirements-cpu.txt
GPU_PINS := infra/requirements-gpu.txt
# Groups of tests (tests/conftest.py) in two processes.
AT_ONCE := -n 2 --dist loadscope --no-loadscope-reorder
COMPILE := $(BIN)/uv pip compile --python-version 3.11 --python-platform x86_64-manylinux_2_28 \
	--no-annotate --no-header
# The last one that Node 20 runs.
AZURITE := azurite@3.35.0
# PyTorch's own index of CPU builds, used only where the configured one has none.
TORCH_INDEX := https://download.pytorch.org/whl/cpu

.PHONY: help demo test long unit quick check docs faults mutants setup azurite lock nano clean

help: ## list these targets
	@grep -E '^[a-z]+:.* ## ' $(MAKEFILE_LIST) | sed 's/:.* ## /\t/' | expand -t 10

demo: setup ## run the main job on the built-in small model (two minutes)
	$(BIN)/qwq-batch run configs/demo.yaml
	$(BIN)/qwq-batch show out/demo --rows 1

test: check ## lint, types and all tests but the long ones
	$(BIN)/pytest $(AT_ONCE)

unit: setup ## the unit tests
	$(BIN)/pytest tests/unit

quick: check ## lint, types, unit and integration tests, the demo on the real engine
	$(BIN)/pytest tests/unit tests/integration $(AT_ONCE)
	rm -rf out/quick
	$(BIN)/qwq-batch run configs/demo.yaml --set output.path=out/quick

check: setup ## formatting, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

docs: setup ## write the configuration reference from the fields' descriptions
	$(BIN)/python -m infra.docs.reference

long: check ## all tests, with the long ones (an hour)
	QWQ_TEST_LONG=1 $(BIN)/pytest $(AT_ONCE)

faults: setup ## what each fault costs, as a table, with ten kills in a row (half an hour)
	QWQ_TEST_LONG=1 $(BIN)/pytest tests/faults --kills 10

mutants: setup ## which changes of the code that keeps data do the unit tests not notice (half an hour)
	nice $(BIN)/python -m tests.mutants

setup: .venv/.ready ## install the pinned packages into .venv (4 GB)

.venv/.ready: $(PINS) pyproject.toml
	@test -n "$(PYTHON)" || { echo "Python 3.11, 3.12 or 3.13 is needed (or set PYTHON=...)"; exit 1; }
	$(PYTHON) -m venv .venv
	@echo "Installing pinned packages (4 GB, some minutes)"
	$(BIN)/python -m pip install -q --no-deps -r $(PINS) || \
		$(BIN)/python -m pip install -q --no-deps -r $(PINS) --extra-index-url $(TORCH_INDEX)
	$(BIN)/python -m pip install -q --no-deps --no-build-isolation -e .
	@touch $@

azurite: ## install Azure's emulator into .venv by npm; without it its tests are skipped
	mkdir -p .venv/azurite
	npm install --silent --no-audit --no-fund --prefix .venv/azurite $(AZURITE)

# The override drops what requirements-cpu.in says is left out.
lock: setup ## pin the packages again, for CPUs and for GPUs
	printf '%s\n' torchvision torchaudio torchcodec | sed 's/$$/ ; python_version < "3"/' > .overrides.txt
	echo 'torch==2.13.0+cpu' >> .overrides.txt
	$(COMPILE) infra/requirements-cpu.in --override .overrides.txt -o $(PINS) $(UV_FLAGS) \
		--extra-index-url $(TORCH_INDEX) --index-strategy unsafe-best-match
	rm .overrides.txt
	$(COMPILE) pyproject.toml --extra gpu -o $(GPU_PINS) $(UV_FLAGS)

nano: setup ## train both small models again (an hour on two cores), then measure them
	$(BIN)/python -m infra.nano.train qwq-nano
	$(BIN)/python -m infra.nano.train qwq-nano-preview --init pipeline/models/qwq-nano --steps 500 --peak 1e-3
	$(BIN)/python -m infra.nano.evaluate

clean: ## remove the environment, outputs and caches
	rm -rf .venv out build *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
