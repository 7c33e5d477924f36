# Two commands: `make demo` and `make test`. Each sets up .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TORCH := torch==2.13.0

.PHONY: demo test lint clean

$(VENV)/.base: pyproject.toml CMakeLists.txt $(wildcard samq_onnx/runtime/csrc/*)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check $(TORCH)
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[eval,learn]'
	touch $@

$(VENV)/.dev: $(VENV)/.base
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps torchvision==0.28.0
	$(BIN)/pip install --quiet --disable-pip-version-check segment-anything onnx-graphsurgeon safetensors
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[eval,learn,dev]'
	touch $@

demo: $(VENV)/.base
	$(BIN)/python -m samq_onnx.demo -o demo

test: $(VENV)/.dev lint
	$(BIN)/python -m pytest

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) build demo
