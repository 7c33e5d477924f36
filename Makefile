# Two commands: `make demo` and `make test`. Each sets up .venv first. `make sanitize` is for changes of the kernels.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TORCH := torch==2.13.0
SITE_PACKAGES := 'import sysconfig; print(sysconfig.get_path("purelib"))'
SANITIZED := build/sanitized
SANITIZERS := -fsanitize=address,undefined -fno-sanitize-recover=all

.PHONY: demo test sanitize lint clean

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

# The kernels' tests on a library with AddressSanitizer and UndefinedBehaviorSanitizer, in an environment of its own
# that falls back on .venv. It runs elsewhere, or the sources would hide the package installed there. Leaks are not
# looked for: Python and ONNX Runtime leave memory behind at exit.
sanitize: $(VENV)/.dev
	$(PYTHON) -m venv --without-pip $(SANITIZED)
	printf '%s\n' "$$($(BIN)/python -c $(SITE_PACKAGES))" '$(CURDIR)' \
		> "$$($(SANITIZED)/bin/python -c $(SITE_PACKAGES))/base.pth"
	$(BIN)/pip --python $(SANITIZED)/bin/python install --quiet --disable-pip-version-check --no-deps \
		--force-reinstall -Cbuild-dir=build/sanitize '-Ccmake.define.CMAKE_CXX_FLAGS=$(SANITIZERS)' .
	cd $(SANITIZED) && ASAN_OPTIONS=detect_leaks=0 \
		LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libstdc++.so)" \
		bin/python -m pytest --import-mode=append $(CURDIR)/runtime_tests

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) build demo
