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

.PHONY: demo test sanitize fuzz lint clean

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

# An environment with a library with AddressSanitizer and UndefinedBehaviorSanitizer, which falls back on .venv. What
# runs in it must not find the sources first, which would hide the package installed there.
$(SANITIZED)/.done: $(VENV)/.dev $(shell find samq_onnx export passes -name '*.py')
	$(PYTHON) -m venv --without-pip $(SANITIZED)
	printf '%s\n' "$$($(BIN)/python -c $(SITE_PACKAGES))" '$(CURDIR)' \
		> "$$($(SANITIZED)/bin/python -c $(SITE_PACKAGES))/base.pth"
	$(BIN)/pip --python $(SANITIZED)/bin/python install --quiet --disable-pip-version-check --no-deps \
		--force-reinstall -Cbuild-dir=build/sanitize '-Ccmake.define.CMAKE_CXX_FLAGS=$(SANITIZERS)' .
	touch $@

# The kernels' tests.
sanitize: $(SANITIZED)/.done
	cd $(SANITIZED) && $(SANITIZED_ENV) bin/python -m pytest --import-mode=append $(CURDIR)/runtime_tests

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
	cd $(LINTED) && $(CURDIR)/$(BIN)/mypy --config-file $(CURDIR)/pyproject.toml --cache-dir $(CURDIR)/.mypy_cache
	cd $(LINTED) && PYTHONPATH="$$($(CURDIR)/$(BIN)/python -c $(SITE_PACKAGES))" $(CURDIR)/$(BIN)/python -S \
		-c 'import importlinter.cli; importlinter.cli.lint_imports_command()' --config $(CURDIR)/pyproject.toml --no-cache

clean:
	rm -rf $(VENV) build demo
