# Needs Python 3.11 or newer, make and a network. `make demo` is the shortest way to see it work.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
SERVERS := tests/e2e tests/plugin/test_features.py
CPU_TESTS := TRITON_INTERPRET=1 $(BIN)/python -m pytest

SANITIZED := tests/kernels -k "dtype0 and (1- or 8- or 33- or 129-) and (one_row or ragged or a_split)"

.DEFAULT_GOAL := help
.PHONY: help install test test-servers test-units check test-gpu sanitize bench soak demo clean

help:
	@echo "make install   create $(VENV) with vLLM for this machine's GPU, or for its CPU"
	@echo "make test      tests that need no GPU"
	@echo "make check     formatting, lint, types and those tests: what a change must pass"
	@echo "make test-gpu  tests on the GPU"
	@echo "make sanitize  the kernels under compute-sanitizer's memcheck and racecheck"
	@echo "make bench     time, memory and layer errors of the quantizer on the demo model"
	@echo "make soak      every fault of tests/FAULTS.md: malformed files, flips, full disks, kills, a server under load; an hour"
	@echo "make demo      quantize a small model, serve it, ask it a question"
	@echo "make clean     remove the demo, caches and build folders; $(VENV) stays"

install: $(STAMP)

$(STAMP): pyproject.toml deploy/cpu/install_vllm.py
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	if nvidia-smi >/dev/null 2>&1; then \
		$(BIN)/python -m pip install --quiet --editable ".[serve,demo,dev]"; \
	else \
		$(BIN)/python deploy/cpu/install_vllm.py && \
		$(BIN)/python -m pip install --quiet --editable ".[demo,dev]"; \
	fi
	touch $@

# beside each other: servers wait more than they compute
test: install
	$(MAKE) --jobs=2 test-servers test-units

test-servers: install
	$(CPU_TESTS) -m "not gpu" $(SERVERS)

test-units: install
	OMP_WAIT_POLICY=passive $(CPU_TESTS) -m "not gpu" $(SERVERS:%=--ignore=%)

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(MAKE) test

test-gpu: install
	$(BIN)/python -m pytest -m gpu

# small sizes, every allocation of its own; racecheck takes Triton's own warp_specialize for a race (LOG.md, 2026-11-23)
SANITIZE := PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --error-exitcode 1

sanitize: install
	$(SANITIZE) --tool memcheck $(BIN)/python -m pytest -m gpu $(SANITIZED)
	$(SANITIZE) --tool racecheck --kernel-name-exclude kernel_substring=_wgmma_gemm $(BIN)/python -m pytest -m gpu $(SANITIZED)

bench: install
	$(BIN)/python deploy/benchmarks/bench_quantize.py

SERVER_SOAK := HF_HUB_OFFLINE=1 PYTHONPATH=tests:deploy:deploy/gate $(BIN)/python deploy/soak

# a tmpfs of its own for the full disks: root or user namespaces
soak: install
	PYTHONPATH=tests $(BIN)/python deploy/soak/measure_refusals.py
	$(CPU_TESTS) tests/faults/test_flips.py --hypothesis-profile=soak --hypothesis-show-statistics
	PYTHONPATH=tests unshare --map-root-user --mount $(BIN)/python deploy/soak/fill_disk.py
	PYTHONPATH=tests $(BIN)/python deploy/soak/kill_quantize.py
	PYTHONPATH=tests $(BIN)/python deploy/soak/kill_quantize.py --recipe tuned --kills 100
	PYTHONPATH=tests $(BIN)/python deploy/soak/kill_quantize.py --recipe tuned --kills 40 --signal TERM
	PYTHONPATH=tests $(BIN)/python deploy/soak/kill_boundaries.py
	PYTHONPATH=tests $(BIN)/python deploy/soak/kill_boundaries.py --recipe tuned
	$(BIN)/python -m pip install --quiet --editable ".[soak]"
	$(SERVER_SOAK)/start_failures.py
	$(SERVER_SOAK)/hostile_requests.py
	$(SERVER_SOAK)/fuzz_openapi.py
	$(SERVER_SOAK)/kill_engine.py
	$(SERVER_SOAK)/load_server.py --seconds 1800

demo: install
	$(BIN)/python deploy/demo.py

clean:
	rm -rf .cache build demo *.egg-info .mypy_cache .ruff_cache .pytest_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
