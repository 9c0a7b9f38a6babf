# Two commands on a fresh machine with Python >= 3.11: `make test` and `make bench`. Each does its own set-up in .venv.

PYTHON ?= python3
BIN := .venv/bin
TIME_BUDGET ?= 200
GPU_TIME_BUDGET ?= 540
GPU_OUT ?= gpu-out
RESULTS ?= bench-out
# A process per core, each with one thread: threads of several processes on one core wait for each other. Compiled once:
# many tests start a Python of their own, which would compile every module again.
PYTEST = OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n auto --maxprocesses 8 --dist worksteal

.PHONY: test check full bench publish claims study fingerprints gpu lint clean

# The second run is of the Triton kernels under their interpreter, which must be chosen before Triton is imported.
test: .venv/ready
	$(PYTEST); status=$$?; TRITON_INTERPRET=1 $(PYTEST) && exit $$status

# Lint and a part of the suite that covers every module, one case of each test: between two edits. Side by side, because
# mypy runs on one core.
check: export SPECTRAL_EFFORT = 0
check: .venv/ready
	$(MAKE) -j2 lint test

# Measures this machine in a few minutes, in a folder that git ignores; run again, it resumes.
bench publish: .venv/ready
	$(BIN)/spectralbench run --profile quick --time-budget $(TIME_BUDGET) --results $(RESULTS); status=$$?; \
	$(BIN)/spectralbench plot --results $(RESULTS) && $(BIN)/spectralbench choices --results $(RESULTS) >/dev/null; \
	$(BIN)/spectralbench report --results $(RESULTS) && exit $$status

# The same into the tracked results, to commit.
publish: RESULTS = results

# What the README answers: ours against torch.fft and the library convolution, interleaved, three processes. Half an hour.
claims: .venv/ready
	$(BIN)/spectralbench run band_limited_conv2d masked_conv2d --profile claims

# The full sweep: every case in five processes. About an hour on two cores; resumes where it was stopped.
study: .venv/ready
	$(BIN)/spectralbench run --profile study
	$(BIN)/spectralbench plot
	$(BIN)/spectralbench report

# The long form of `make test`: eight times the random shapes, every case of the large matrices, gradients along every
# axis, every kernel compiled for every architecture. An hour or more.
full: export SPECTRAL_EFFORT = 8
full: .venv/ready
	$(MAKE) test
	$(BIN)/spectralbench fingerprint --check

# What the compiler makes of every Triton kernel, against the committed expectation; no GPU needed.
fingerprints: .venv/ready
	$(BIN)/spectralbench fingerprint --check --arch 90

# Everything on a CUDA machine, with the python3 that is there: ceilings, the rows with targets, memory, checks, the rest.
# Needs torch and triton, installs nothing, resumes; GPU_ARGS is for `--commit SHA`, `--kernels`, `--pack` and the like.
gpu:
	PYTHONPATH=kernels:bench $(PYTHON) -m spectralbench.gpu --out $(GPU_OUT) --time-budget $(GPU_TIME_BUDGET) $(GPU_ARGS)

lint: .venv/ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

.venv/ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "spectralbench needs Python >= 3.11; set PYTHON=python3.x")'
	$(PYTHON) -m venv .venv
	PIP_CONSTRAINT=constraints.txt $(BIN)/python -m pip install --quiet --quiet --disable-pip-version-check -e '.[dev]'
	touch $@

clean:
	rm -rf .venv .asv .pytest_cache .mypy_cache .ruff_cache
