# `make demo` and `make test` install what they need. PYTHON=... chooses another interpreter.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
TWO_WORKERS = -n 2 --dist loadfile --no-loadscope-reorder
PIP_INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-warn-conflicts

.PHONY: demo test slow faults lint docs bench compiled compiled-peers demo-image clean

demo: $(VENV)/.installed
	@$(BIN)/dajax predict dajax/assets/scene.jpg --model tiny --side-by-side --output demo
	@echo "This was tiny, the model that comes with dajax. With a connection: $(BIN)/dajax predict YOUR.jpg --model small"

demo-image: $(VENV)/.installed
	@$(BIN)/dajax predict dajax/assets/scene.jpg --model tiny --output build
	@$(BIN)/python tools/demo_image.py dajax/assets/scene.jpg build/scene_depth.png docs/images/demo.jpg

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest $(TWO_WORKERS) -m "not slow and not very_slow and not network"

# The tests that `make test` leaves out, except those that need the Hugging Face Hub: more than an hour, 5 GB of disk.
slow: $(VENV)/.installed-test
	$(BIN)/python -m pytest $(TWO_WORKERS) -m "slow or very_slow"

# Jobs of 500 images are killed, crash or fill the disk at 200 moments instead of a few. This takes half an hour.
faults: $(VENV)/.installed-test
	DAJAX_FAULTS=200 $(BIN)/python -m pytest tests/batch/test_faults.py tests/cli/test_batch.py -n 2 \
		-m "not very_slow and not network" -k "crash or disk or killed or chain or signal"

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

# Makes a site of the README, the pages of docs/ and the docstrings, in build/docs.
docs: $(VENV)/.installed-docs
	$(BIN)/python -m sphinx --quiet --fail-on-warning --keep-going -c docs -d build/doctrees . build/docs
	@echo "Wrote build/docs/index.html"

# Measures dajax beside other implementations, whose packages take gigabytes.
bench: $(VENV)/.installed-bench
	$(BIN)/python -m benchmarks --memory
	$(BIN)/python -m benchmarks.start
	$(BIN)/python -m benchmarks.precision
	$(BIN)/python -m benchmarks.report

# Compiles whole networks for TPUs, which no machine here is, and writes what the compiler says: half an hour.
compiled: .venv-tpu/.installed
	.venv-tpu/bin/python -m benchmarks.compiled all

# The same for keras-hub, whose packages take gigabytes.
compiled-peers: .venv-tpu/.installed-peers
	.venv-tpu/bin/python -m benchmarks.compiled all --peer keras-hub

clean:
	rm -rf .venv .venv-* build dist demo

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml | $(VENV)/bin/python
	$(PIP_INSTALL) --editable .
	@touch $@

# constraints.txt pins torch; without it pip installs a build with gigabytes of CUDA.
$(VENV)/.installed-test: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP_INSTALL) --constraint constraints.txt --editable '.[test,parity,services]'
	@touch $@ $(VENV)/.installed

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP_INSTALL) --constraint constraints.txt --editable '.[test,dev]'
	@touch $@

$(VENV)/.installed-docs: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP_INSTALL) --constraint constraints.txt --editable '.[docs]'
	@touch $@

$(VENV)/.installed-bench: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP_INSTALL) --constraint constraints.txt --editable '.[bench]'
	@touch $@

# The compiler for TPUs needs a newer Python than the rest. constraints-tpu.txt pins it: its estimates change.
.venv-tpu/bin/python:
	"$$(.ci/newest-python)" -m venv .venv-tpu

.venv-tpu/.installed: pyproject.toml constraints-tpu.txt | .venv-tpu/bin/python
	.venv-tpu/bin/python -m pip install --quiet --disable-pip-version-check --no-compile --constraint constraints-tpu.txt \
		--editable . 'jax[tpu]' pytest
	@touch $@

.venv-tpu/.installed-peers: .venv-tpu/.installed
	.venv-tpu/bin/python -m pip install --quiet --disable-pip-version-check --no-compile --constraint constraints-tpu.txt keras-hub
	@touch $@
