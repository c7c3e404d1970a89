# Everything is built into .venv; `make demo` and `make test` set up all they need.
VENV := .venv
PY := $(VENV)/bin/python

.PHONY: install demo test test-demands test-sanitize fuzz lint bench bench-proto bench-relay bench-log proto clean dev system

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml setup.py $(wildcard src/_native/*) scripts/prepare
	./scripts/prepare build
	test -x $(PY) || python3 -m venv $(VENV)
	$(PY) -m pip install --quiet --editable .
	touch $@

$(VENV)/.dev: $(VENV)/.installed
	$(PY) -m pip install --quiet --editable '.[dev]'
	touch $@

dev: $(VENV)/.dev

system:
	./scripts/prepare run

demo: install system
	$(PY) -m shim.demo

test: dev system lint
	./scripts/prepare test
	$(PY) -m pytest

# What users suffer from, at the sizes that they have named: more than an hour.
test-demands: dev system
	./scripts/prepare test
	DENSESHIM_TEST_FULL=1 $(PY) -m pytest -k demand -rA -o faulthandler_timeout=1500 \
	    tests/containerd

lint: dev
	$(PY) -m ruff check src tests benchmarks setup.py
	$(PY) -m mypy

test-sanitize: dev system
	./scripts/sanitize

fuzz: dev
	PYTHON=$(PY) ./scripts/fuzz run

# What `python -m benchmarks` takes: `make bench BENCH=--quick`.
BENCH :=

$(VENV)/.bench: $(VENV)/.installed
	$(PY) -m pip install --quiet --editable '.[bench]'
	touch $@

bench: $(VENV)/.bench system
	./scripts/prepare bench
	$(PY) -m benchmarks run $(BENCH)

bench-proto: dev
	$(PY) -m grpc_tools.protoc -Ibenchmarks --python_out=benchmarks/_pb \
	    --pyi_out=benchmarks/_pb containerd.proto

bench-relay: $(VENV)/.bench system
	./scripts/prepare bench
	$(PY) -m benchmarks run --workload bulk_output --workload small_lines --workload loop_scale \
	    --system dense_host --system loop $(BENCH)

bench-log: $(VENV)/.bench system
	./scripts/prepare bench
	$(PY) -m benchmarks.bench_log

proto: dev
	$(PY) scripts/make_proto.py

clean:
	rm -rf $(VENV) build src/*.egg-info src/shim/*.so src/_native/keeper.c
