# SPDX-License-Identifier: MIT
#
# The front door; meson.build is the build. `make help` lists the targets.

PREFIX ?= /usr/local
DESTDIR ?=
BUILD ?= build/release
JOBS ?= $(shell nproc)
IMAGE ?=
export PREFIX DESTDIR IMAGE SOCKET TCP JOBS

.PHONY: build serve test test-quick test-matrix explore soak fuzz bench
.PHONY: bench-plots bench-features install
.PHONY: format clean help

build: ## build the library and coaio-nbd (default)
	@scripts/install-deps build
	@scripts/configure "$(BUILD)" "-Dprefix=$$(realpath -ms -- "$$PREFIX")" \
	    -Dlibdir=lib -Dtests=false -Dbench=false
	@ninja -j$(JOBS) -C "$(BUILD)"

serve: build ## serve a disk: IMAGE=disk.img [SOCKET=path] [TCP=address:port]
	@exec env COAIO_NBD="$(BUILD)/nbd/coaio-nbd" scripts/serve "$$IMAGE"

test: ## the full suite, sanitizers included; at most 20 minutes
	@scripts/test full

test-quick: ## the quick tests on one engine (COAIO_ENGINE=epoll|poll|uring)
	@scripts/test quick

test-matrix: ## everything with everything; hours, or parts: PARTS=clang-asm
	@scripts/test matrix $(PARTS)

explore: ## every schedule of the core up to BOUND=2 preemptions
	@scripts/explore $(BOUND)

soak: ## the threaded tests, over and over, where schedules are rare: SECONDS=600
	@scripts/install-deps build
	@scripts/configure build/soak -Dwerror=true -Ddelays=true -Dnbd=false \
	    -Dexamples=false
	@ninja -j$(JOBS) -C build/soak --quiet
	@scripts/soak --seconds $(or $(SECONDS),600) build/soak build/soak/failures

fuzz: ## coaio-nbd's parsers, each for SECONDS=15; clang's libFuzzer
	@scripts/fuzz $(SECONDS)

bench: ## compare with the rivals; writes RESULTS=build/bench/results.json
	@scripts/install-deps build bench
	@scripts/configure build/bench/tree -Dbench=true -Dtests=false
	@ninja -j$(JOBS) -C build/bench/tree
	@bench/run build/bench/tree $(or $(RESULTS),build/bench/results.json)

bench-plots: ## measure how costs grow, and draw docs/plots
	@scripts/install-deps build bench plots
	@scripts/configure build/bench/tree -Dbench=true -Dtests=false
	@ninja -j$(JOBS) -C build/bench/tree
	@bench/scale build/bench/tree docs/plots/scale.json
	@bench/plot docs/plots/scale.json docs/plots

bench-features: ## measure io_uring's features; RESULTS=build/bench/features.json
	@scripts/install-deps build
	@scripts/configure build/bench/tree -Dbench=true -Dtests=false
	@ninja -j$(JOBS) -C build/bench/tree
	@bench/features build/bench/tree $(or $(RESULTS),build/bench)

install: build ## install below PREFIX (DESTDIR is put in front)
	@scripts/install "$(BUILD)"

format: ## run clang-format over the lines of C that you have changed
	@scripts/install-deps format
	@git clang-format --extensions c,h,cpp

clean: ## remove everything that was built
	rm -rf build

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' \
	    Makefile
