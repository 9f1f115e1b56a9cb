# Two commands set everything up: `make demo` and `make test`. PYTHON picks another interpreter.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
PIP_INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-warn-conflicts

.PHONY: demo test faults lint docs bench demo-image clean

demo: $(VENV)/.installed
	@$(BIN)/dajax predict dajax/assets/scene.jpg --model tiny --output demo
	@echo "That was tiny, the small model in dajax itself. With a connection: $(BIN)/dajax predict YOUR.jpg --model small"

demo-image: demo
	@$(BIN)/python tools/demo_image.py dajax/assets/scene.jpg demo/scene_depth.png docs/images/demo.jpg

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not slow and not network"

# Jobs of 500 images that are killed, crash and find the disk full, at 200 moments instead of a few: half an hour.
faults: $(VENV)/.installed-test
	DAJAX_FAULTS=200 $(BIN)/python -m pytest tests/batch/test_faults.py tests/cli/test_batch.py -n 2 -k "crash or disk or killed or chain or signal"

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

# A site in build/docs: README, the pages of docs/ and the docstrings.
docs: $(VENV)/.installed-docs
	$(BIN)/python -m sphinx --quiet --fail-on-warning --keep-going -c docs -d build/doctrees . build/docs
	@echo "Wrote build/docs/index.html"

# dajax beside its peers; they bring gigabytes.
bench: $(VENV)/.installed-bench
	$(BIN)/python -m benchmarks --memory
	$(BIN)/python -m benchmarks.start
	$(BIN)/python -m benchmarks.precision
	$(BIN)/python -m benchmarks.report

clean:
	rm -rf .venv .venv-* build dist demo

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml | $(VENV)/bin/python
	$(PIP_INSTALL) --editable .
	@touch $@

# constraints.txt pins torch: without it pip takes a build with gigabytes of CUDA.
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
