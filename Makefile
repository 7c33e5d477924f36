# Two commands: `make demo` and `make test`. Each sets up .venv first. `make sanitize` is for changes of the kernels,
# `make fuzz MINUTES=N` gives mutated inputs to all that reads some.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TORCH := torch==2.13.0
SITE_PACKAGES := 'import sysconfig; print(sysconfig.get_path("purelib"))'
SANITIZED := build/sanitized
LINTED := build/lint
SANITIZERS := -fsanitize=address,undefined -fno-sanitize-recover=all
# Leaks are not looked for: Python and ONNX Runtime leave memory behind at exit.
SANITIZED_ENV = env ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 \
	LD_PRELOAD=$$(g++ -print-file-name=libasan.so):$$(g++ -print-file-name=libstdc++.so)
MINUTES ?= 1
WORKERS ?= 2
JOBS := $(shell nproc 2> /dev/null || echo 2)
CMAKE := $(shell command -v cmake || echo $(BIN)/cmake)
NATIVE := $(wildcard samq_onnx/runtime/csrc/* runtime_tests/*.cc runtime_tests/*.h)
OLDEST := build/ort-1.20

.PHONY: demo demo-all test test-fast oldest sanitize fuzz lint clean

# One command for each environment, which resolves, and builds the library, once; Python compiles what it imports itself.
PIP_INSTALL := install --quiet --disable-pip-version-check --no-compile
SOURCES := pyproject.toml CMakeLists.txt $(wildcard samq_onnx/runtime/csrc/*)

$(VENV)/bin/pip:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.base: $(SOURCES) | $(VENV)/bin/pip
	$(BIN)/pip $(PIP_INSTALL) $(TORCH) -e '.[eval,learn]'
	touch $@

$(VENV)/.dev: $(SOURCES) | $(VENV)/bin/pip
	$(BIN)/pip $(PIP_INSTALL) $(TORCH) torchvision==0.28.0 -e '.[eval,export,families,dev]'
	touch $(VENV)/.base $@

demo: $(VENV)/.base
	$(BIN)/python -m samq_onnx.demo -o demo

# With the widths that have to be learned.
demo-all: $(VENV)/.base
	$(BIN)/python -m samq_onnx.demo -o demo --all

# Workers share the cores, so each computes in one thread; a test that waits for one of a long file takes it over.
PYTEST = env OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

test: $(VENV)/.dev lint
	$(PYTEST)

# Without the tests that learn, export or build.
test-fast: $(VENV)/.dev
	$(PYTEST) -m 'not slow'

# The oldest ONNX Runtime that the library supports, for the test of its interface.
oldest: $(OLDEST)/.done
$(OLDEST)/.done: $(VENV)/.dev
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --upgrade --target $(OLDEST) onnxruntime==1.20.1
	touch $@

$(BIN)/cmake: $(VENV)/.dev
	$(BIN)/pip install --quiet --disable-pip-version-check cmake

# The kernels and the programs that run them without Python, with sanitizers. At -O3 those take minutes to compile.
build/address/.done: FLAGS := $(SANITIZERS)
build/address/.done: TARGETS := compare_tiles run_operators samq_ops count_slots
build/thread/.done: FLAGS := -fsanitize=thread
build/thread/.done: TARGETS := run_operators
build/address/.done build/thread/.done: $(CMAKE) CMakeLists.txt $(NATIVE)
	$(CMAKE) -S . -B $(@D) -DSAMQ_OPTIMIZE=-Og -DCMAKE_CXX_FLAGS='$(FLAGS) -g1' > /dev/null
	$(CMAKE) --build $(@D) -j $(JOBS) --target $(TARGETS) -- --quiet
	touch $@

# An environment with the library of build/address, which falls back on .venv. What runs in it must not find the sources
# first, which would hide the package installed there.
$(SANITIZED)/.done: $(VENV)/.dev build/address/.done $(shell find samq_onnx export passes -name '*.py')
	$(PYTHON) -m venv --without-pip $(SANITIZED)
	set -e; packages="$$($(SANITIZED)/bin/python -c $(SITE_PACKAGES))"; rm -rf "$$packages/samq_onnx"; \
		printf '%s\n' "$$($(BIN)/python -c $(SITE_PACKAGES))" '$(CURDIR)' > "$$packages/base.pth"; \
		cp -r samq_onnx "$$packages"; cp -r export passes "$$packages/samq_onnx"; \
		cp build/address/libsamq_ops.so "$$packages/samq_onnx/runtime"
	touch $@

# What runs the kernels, with sanitizers: every tile kernel, every operator in a stand-in for ONNX Runtime and in the real
# one. Function bodies never enter the library, so they are left to `make test`.
sanitize: $(SANITIZED)/.done build/thread/.done
	build/address/compare_tiles 40
	build/address/run_operators 20
	SAMQ_ISA=avx2 build/address/run_operators 20
	build/thread/run_operators 5
	SAMQ_ISA=avx2 build/thread/run_operators 5
	cd $(SANITIZED) && $(SANITIZED_ENV) bin/python -m runtime_tests.call_slots $(CURDIR)/build/address/libcount_slots.so

# All targets of tests/fuzz, those of the kernels on the library with sanitizers.
fuzz: $(SANITIZED)/.done
	$(BIN)/python -m tests.fuzz --minutes $(MINUTES) \
		--sanitized-python "$(SANITIZED_ENV) PYTHONSAFEPATH=1 $(SANITIZED)/bin/python"

# mypy and import-linter see the code where the wheel has it: export and passes inside samq_onnx. Without -S, Python
# would know where the editable install has it.
lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	rm -rf $(LINTED)
	mkdir -p $(LINTED)/samq_onnx
	ln -s $(CURDIR)/samq_onnx/* $(CURDIR)/export $(CURDIR)/passes $(LINTED)/samq_onnx
	ln -s $(CURDIR)/pyproject.toml $(CURDIR)/tests/allowed_imports.py $(LINTED)
	cd $(LINTED) && $(CURDIR)/$(BIN)/mypy --cache-dir $(CURDIR)/.mypy_cache
	cd $(LINTED) && PYTHONPATH="$$($(CURDIR)/$(BIN)/python -c $(SITE_PACKAGES))" $(CURDIR)/$(BIN)/python -S \
		-c 'import importlinter.cli; importlinter.cli.lint_imports_command()' --no-cache

clean:
	rm -rf $(VENV) build demo
