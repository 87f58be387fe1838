# Commands for developers and curious users; run `make` for a list. All files are created in this folder (target/, .seqembed/, .venv*/, demo/).

PYTHON ?= python3
CARGO ?= cargo
# Tested versions; the C interface that seqembed uses exists since 1.24.
ONNXRUNTIME ?= onnxruntime>=1.26,<2

export PYTHON
ort := $(CURDIR)/.seqembed/onnxruntime
# A value from the environment takes precedence.
export ORT_DYLIB_PATH ?= $(ort)

# On a GPU: the library with the CUDA provider.
ONNXRUNTIME_GPU ?= onnxruntime-gpu>=1.31,<2
# An existing executable to measure, instead of building one.
SEQEMBED ?=

.PHONY: help setup build demo test test-gpu test-install lint soak fuzz parity real bench-cpu bench-gpu clean
.DEFAULT_GOAL := help

help: ## show this list
	@echo "make TARGET, one of:"
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{ printf "%-14s %s\n", $$1, $$2 }'

setup: need-python ## download ONNX Runtime to .seqembed/ (the library from the Python wheel)
	@if [ "$(ORT_DYLIB_PATH)" = "$(ort)" ]; then $(PYTHON) scripts/onnxruntime.py "$(ort)" "$(ONNXRUNTIME)"; fi
	@# Next to the executable, it is found without ORT_DYLIB_PATH.
	@if [ -d "$(ort)" ]; then mkdir -p target/debug target/release; ln -sfn "$(ort)" target/debug/lib; ln -sfn "$(ort)" target/release/lib; fi

build: need-cargo setup ## build target/release/seqembed, which finds ONNX Runtime automatically
	@$(CARGO) build --release --locked

demo: build ## embed the proteomes in examples/ and plot them (in demo/); real weights are verified first
	@sh scripts/demo.sh

test: need-cargo setup ## run all tests
	@sh scripts/python-env.sh .venv tests/requirements.txt
	@SEQEMBED_TEST_PYTHON="$(CURDIR)/.venv/bin/python" $(CARGO) test --workspace --locked --no-fail-fast

test-gpu: need-cargo ## run the tests that need a GPU (ORT_DYLIB_PATH: an ONNX Runtime with CUDA; SEQEMBED_TEST_GPU: cuda:1 ...)
	@$(CARGO) test --locked --no-fail-fast --test gpu -- --ignored --test-threads=1

test-install: need-cargo setup ## test the installation with pip in a new environment (builds again), and the advice for GPUs
	@$(CARGO) test --locked --test it -- --ignored install:: devices::

.PHONY: test-galaxy lint-nf-core
test-galaxy: build ## lint the Galaxy tools and run their tests in a Galaxy server (installs planemo and Galaxy from PyPI, 2 GB)
	@sh scripts/python-env.sh .venv-planemo galaxy/planemo.txt
	@sh scripts/python-env.sh .venv-galaxy galaxy/requirements.txt
	@.venv-planemo/bin/planemo lint --fail_level warn galaxy
	@sh scripts/galaxy.sh target/release/seqembed

lint-nf-core: need-python ## check the Nextflow modules with nf-core's linter (installs it; needs Java and Maven; CLONE=PATH: a clone of nf-core/modules)
	@sh scripts/python-env.sh .venv-nf-core nextflow/requirements.txt
	@PATH="$(CURDIR)/.venv-nf-core/bin:$$PATH" sh scripts/nf-core.sh $(CLONE)

.PHONY: test-cluster
test-cluster: build ## run the workflows and the array script on a SLURM of this machine (Debian's packages, as root; installs Snakemake)
	@sh scripts/python-env.sh .venv-snakemake snakemake/requirements.txt
	@bash scripts/test-cluster.sh target/release/seqembed

lint: need-cargo ## check formatting and lints, and that no temporary files of tools are committed
	@git ls-files | sh scripts/leftovers.sh
	@! git grep -nE '^(<{7}|>{7}) ' || { echo "error: these lines are left from a merge" >&2; exit 1; }
	@$(CARGO) fmt --all --check
	@# The list of families declares its modules by a macro, into which cargo fmt does not look.
	@rustfmt --edition 2024 --check onnx/src/families/*.rs
	@$(CARGO) clippy --workspace --all-targets --locked -- -D warnings

soak: need-cargo setup ## kill, stop and starve runs at random moments, and resume them (as root, also with full disks)
	@SEQEMBED_SOAK=long $(CARGO) test --release --locked --test it -- --nocapture --test-threads 1 soak::

fuzz: need-cargo ## fuzz the readers, FUZZ_SECONDS=60 each (installs cargo-fuzz; needs a nightly Rust)
	@sh scripts/fuzz.sh $(FUZZ_SECONDS)

parity: build ## compare with fair-esm and transformers at the models' real sizes (installs PyTorch)
	@sh scripts/python-env.sh .venv-bench bench/requirements.txt
	@.venv-bench/bin/python onnx/reference/parity.py $(ARGS)

real: build ## compare with transformers on a real BERT from PyPI (installs PyTorch)
	@sh scripts/python-env.sh .venv-bench bench/requirements.txt
	@.venv-bench/bin/python onnx/reference/antiberty.py $(ARGS)

bench-cpu: build ## benchmark against other tools on this CPU (installs PyTorch)
	@sh scripts/python-env.sh .venv-bench bench/requirements.txt
	@.venv-bench/bin/python bench/cpu.py $(ARGS)
	@.venv-bench/bin/python bench/cpu_dna.py $(DNA_ARGS)
	@.venv-bench/bin/python bench/cpu_families.py $(FAMILY_ARGS)

bench-gpu: need-python ## benchmark against other tools on this GPU (SEQEMBED=PATH: use that executable, do not build)
	@[ -n "$(SEQEMBED)" ] || $(MAKE) --no-print-directory build ONNXRUNTIME="$(ONNXRUNTIME_GPU)"
	@if $(PYTHON) -c 'import tokenizers, torch, transformers; assert torch.cuda.is_available()' 2>/dev/null; then python="$(PYTHON)"; \
	else sh scripts/python-env.sh .venv-bench-gpu bench/requirements-gpu.txt && python=.venv-bench-gpu/bin/python || exit 1; fi; \
	$$python bench/gpu.py $(if $(SEQEMBED),--seqembed "$(SEQEMBED)") $(ARGS)

.PHONY: bench-nextflow
bench-nextflow: build ## measure the cost of group sizes in Nextflow (PROTEINS=file.fasta.gz; needs Java 17 and Maven)
	@$(PYTHON) bench/nextflow.py $(PROTEINS)

clean: ## remove everything that was created here
	@rm -rf target .seqembed .venv .venv-* demo

.PHONY: need-cargo need-python
need-cargo:
	@command -v $(CARGO) >/dev/null || { echo "error: cargo was not found: install Rust 1.92 or newer (rustup)" >&2; exit 1; }
	@command -v cc >/dev/null || { echo "error: no C compiler (cc) was found, which Rust needs for linking: install one (Debian and Ubuntu: apt install build-essential)" >&2; exit 1; }

need-python:
	@command -v $(PYTHON) >/dev/null || { echo "error: $(PYTHON) was not found: install Python 3 with pip (Debian and Ubuntu: apt install python3 python3-pip), or choose one with make PYTHON=..." >&2; exit 1; }
