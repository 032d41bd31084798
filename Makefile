# make demo: set everything up and run the main job on the built-in small model.
# make unit: pass the tests that start neither Ray nor an engine (a minute).
# make quick: lint, types, unit and integration tests, the demo on the real engine (eight minutes).
# make test: set everything up and pass all the tests (half an hour on two cores).

PYTHON ?= $(shell for p in python3 python3.11 python3.12 python3.13; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null \
	&& echo $$p && break; done)
BIN := .venv/bin
PINS := infra/requirements-cpu.txt
# PyTorch's own index of CPU builds, used only where the configured one has none.
TORCH_INDEX := https://download.pytorch.org/whl/cpu

.PHONY: demo unit quick test faults check setup lock nano clean

demo: setup
	$(BIN)/qwq-batch run configs/demo.yaml
	$(BIN)/qwq-batch show out/demo --rows 1

unit: setup
	$(BIN)/pytest tests/unit

quick: check
	$(BIN)/pytest tests/unit tests/integration tests/e2e/test_vllm.py::test_demo_on_s3

test: check
	$(BIN)/pytest

# What each fault costs, as a table, with ten kills in a row instead of two (twenty minutes).
faults: setup
	$(BIN)/pytest tests/faults --kills 10

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

setup: .venv/.ready

.venv/.ready: $(PINS) pyproject.toml
	@test -n "$(PYTHON)" || { echo "Python 3.11, 3.12 or 3.13 is needed (or set PYTHON=...)"; exit 1; }
	$(PYTHON) -m venv .venv
	@echo "Installing pinned packages (4 GB, some minutes)"
	$(BIN)/python -m pip install -q --no-deps -r $(PINS) || \
		$(BIN)/python -m pip install -q --no-deps -r $(PINS) --extra-index-url $(TORCH_INDEX)
	$(BIN)/python -m pip install -q --no-deps --no-build-isolation -e .
	@touch $@

# Needs uv (pip install uv). The override drops what requirements-cpu.in says is left out.
lock:
	printf '%s\n' torchvision torchaudio torchcodec | sed 's/$$/ ; python_version < "3"/' > .overrides.txt
	echo 'torch==2.13.0+cpu' >> .overrides.txt
	uv pip compile infra/requirements-cpu.in --override .overrides.txt -o $(PINS) $(UV_FLAGS) \
		--python-version 3.11 --python-platform x86_64-manylinux_2_28 --no-annotate --no-header \
		--extra-index-url $(TORCH_INDEX) --index-strategy unsafe-best-match
	rm .overrides.txt

# Train both small models again (an hour on two cores), then measure them.
nano: setup
	$(BIN)/python -m infra.nano.train qwq-nano
	$(BIN)/python -m infra.nano.train qwq-nano-preview --init pipeline/models/qwq-nano --steps 500 --peak 1e-3
	$(BIN)/python -m infra.nano.evaluate

clean:
	rm -rf .venv out build *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
