# `make help` lists the targets. On a fresh machine with a Swift toolchain, `make demo` and `make test` need nothing else: what
# is missing is installed by Scripts/deps.sh.
SWIFT ?= swift
RELEASE = -c release
C_FILES = $(shell git ls-files 'CSources/*.c' 'CSources/*.h' 'Tests/*.c' 'Tests/*.h')
SWIFT_DIRECTORIES = Package.swift Sources Tests Examples Benchmarks

.PHONY: help deps demo test bench curve fuzz neon sanitize format lint exhaustive

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

deps: ## install libomp-dev and libopenblas-dev if they are missing
	@bash Scripts/deps.sh

demo: deps ## train a next-word model on a novel with cut cross-entropy
	$(SWIFT) run --package-path Examples/WordModel $(RELEASE) WordModel

# By product: building everything builds tools of the argument parser as well, and other flags build Swift twice.
TESTING = $(RELEASE) -Xswiftc -enable-testing

test: deps ## unit tests, conformance vectors, memory bound, dependency by version
	$(SWIFT) build $(TESTING) --product swift-lm-kernelsPackageTests
	$(SWIFT) build $(TESTING) --product lmk
	LMK_EXPECTS_OPENBLAS=1 $(SWIFT) test $(TESTING) --skip-build
	bash Scripts/conformance.sh
	bash Scripts/memory.sh
	bash Scripts/consumer.sh

# OpenBLAS's fastest kernels: 0.3.21 takes those of 2004 on CPUs with AVX-512 that are newer than itself.
BLAS_KERNELS = $(shell grep -qsm1 avx512f /proc/cpuinfo && echo OPENBLAS_CORETYPE=SkylakeX)
BENCHMARK = cd Benchmarks && env -u OPENBLAS_CORETYPE -u OPENBLAS_L2_SIZE $(BLAS_KERNELS) \
	$(SWIFT) package --disable-sandbox benchmark \
	--target Kernels --quiet --no-progress
CURVE = (softmax of one row|linear attention over lengths).*

bench: deps ## micro-benchmarks against OpenBLAS and a plain loop, as a table
	$(BENCHMARK) --skip "$(CURVE)"

curve: deps ## softmax over sizes, linear attention over lengths, as tables and pictures
	$(SWIFT) build --package-path Benchmarks $(RELEASE) --product Kernels
	"$$($(SWIFT) build --package-path Benchmarks $(RELEASE) --show-bin-path)/Kernels" --filter "$(CURVE)" \
	| tee Benchmarks/.build/curve.txt
	python3 -c 'import matplotlib' 2>/dev/null || python3 -m pip install --quiet matplotlib
	python3 Benchmarks/curve.py Benchmarks/.build/curve.txt Benchmarks/softmax.png Benchmarks/linear-attention.png

fuzz: deps ## compare kernels with references on random problems for a minute
	$(SWIFT) run $(RELEASE) lmk fuzz --seconds 60

neon: ## cross-compile the C targets, run them under qemu, compare bits
	bash Scripts/neon.sh

sanitize: deps ## address, undefined and thread sanitizers
	bash Scripts/sanitize.sh

exhaustive: deps ## elementwise functions over every float32 (minutes)
	bash Scripts/exhaustive.sh

# Debian 12's: others format some of these files otherwise.
CLANG_FORMAT_VERSION = 14
HAS_CLANG_FORMAT = clang-format --version 2>/dev/null | grep -q 'version $(CLANG_FORMAT_VERSION)\.'
NO_CLANG_FORMAT = clang-format $(CLANG_FORMAT_VERSION) is not installed: C not

format: ## rewrite C with clang-format and Swift with swift-format
	@if $(HAS_CLANG_FORMAT); then clang-format -i $(C_FILES); else echo "$(NO_CLANG_FORMAT) formatted"; fi
	$(SWIFT) format --in-place --recursive $(SWIFT_DIRECTORIES)

lint: ## check formatting, where the tools exist
	@if $(HAS_CLANG_FORMAT); then clang-format --dry-run --Werror $(C_FILES) && echo "C: formatted"; \
	else echo "$(NO_CLANG_FORMAT) checked"; fi
	@if $(SWIFT) format --version >/dev/null 2>&1; then $(SWIFT) format lint --strict --recursive $(SWIFT_DIRECTORIES) \
	&& echo "Swift: formatted"; else echo "swift-format is not installed: Swift not checked"; fi
