# Strata from a clone: two commands to begin with, and the ones for work on it.
#
#   make run      what is missing is named and installed, then Strata runs and prints the samples it relays (Ctrl-C ends it)
#   make demo     an outage, a kill -9, the catch-up and the final count, in under a minute after the build
#   make test     everything: format, lints, licences, unit tests, end-to-end tests against real servers
#   make fuzz     each target of fuzz/corpus for FUZZ_SECONDS (60) over that and what earlier runs found, which is kept in $STRATA_CACHE
#   make bench    parse, frame, filter and encode by themselves, then whole processes beside vmagent and Prometheus;
#                 BENCH_ARGS='--only 28 --strata-only' is a part of it, BENCH_ARGS='--out docs/benchmarks.md' writes the page
#   make image    the container image from the release binary, by buildah alone, and a run of it (needs root)
#   make bench-discovery   what it costs to find the targets of 100,000 pods, beside Prometheus; needs root
#   make soak     an hour of 2,800 targets and a flapping sink, counted to the last scrape; writes docs/soak.md; then a server that is away for
#                 12 minutes, and a node of a cluster that is; then kills at random moments for 5 minutes
#
# Foreign programs go once, by pinned version and checksum, into $STRATA_CACHE (default ~/.cache/strata), outside the clone.
# The page corpus is found through $STRATA_CORPORA (default ../shared/corpora); without it, pages are captured from real programs.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

CACHE := $(or $(STRATA_CACHE),$(HOME)/.cache/strata)
# Named, so that what fuzzing instruments is the programs and not the build scripts.
HOST = $(shell rustc -vV | sed -n 's/^host: //p')
RELEASE := cargo build --release --locked -p strata
# The error of a failed test says what and where by its text; 30 frames of a runtime behind it only push that out of sight. Panics keep theirs.
export RUST_LIB_BACKTRACE := 0
BENCH_FLAGS ?= --warm-up-time 1 --measurement-time 3

.PHONY: help setup build release run demo test fmt lint docs unit e2e bench bench-discovery fuzz image soak

help:
	@sed -n '3,12s/^# *//p' Makefile

setup:
	@tools/setup.sh build run test

build:
	@tools/setup.sh build
	$(RELEASE)

run:
	@tools/setup.sh build run
	$(RELEASE)
	@tools/run.sh

demo: build
	cargo build --locked --workspace --bin demo
	@target/debug/demo

fmt:
	cargo fmt --all

lint:
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings
	"$$(tools/cargo_deny.sh)" --log-level error check licenses bans sources

docs:
	UPDATE_GOLDEN=1 cargo test --locked -p strata --bin strata -- the_reference_is_up_to_date the_page_lists_what_the_sources_declare the_definitions_and_their_page the_charts_schema

unit:
	STRATA_PYTHON="$$(tools/python.sh)" cargo test --workspace --exclude e2e --locked

e2e: release
	cargo test --workspace --locked --test e2e -- --test-threads 2

release:
	$(RELEASE)

# Two builds at once: where one has come to its last and longest crate, the other one has work for the second core. All tests are one call: with other
# packages selected, dependencies have other features, and are built anew.
test:
	@tools/setup.sh build test
	@$(MAKE) --no-print-directory --jobs 2 --output-sync=recurse lint release
	STRATA_PYTHON="$$(tools/python.sh)" cargo test --workspace --locked -- --test-threads 2

bench: build
	@tools/setup.sh bench
	cargo bench --locked -p sample -p collector -p relay --bench '*' -- $(BENCH_FLAGS)
	cargo build --locked --workspace --bin bench
	@target/debug/bench $(BENCH_ARGS)

bench-discovery: build
	@tools/setup.sh test
	cargo build --locked --workspace --bin discovery
	@target/debug/discovery $(BENCH_ARGS)

# libFuzzer's instrumentation needs flags of the code generator, no nightly toolchain.
fuzz: export RUSTFLAGS := -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
  -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares
fuzz:
	@tools/setup.sh build
	RUSTFLAGS= STRATA_SEEDS=$(CACHE)/fuzz cargo test --workspace --locked --test formats -- seeds_of_fuzzing_can_be_written
	cargo build --profile fuzz --locked -p fuzz --target "$(HOST)"
	@for target in $$(ls fuzz/corpus); do \
	  echo "== $$target"; \
	  mkdir -p $(CACHE)/fuzz/$$target; \
	  FUZZ_TARGET=$$target target/$(HOST)/fuzz/fuzz -max_total_time=$(or $(FUZZ_SECONDS),60) -timeout=10 -rss_limit_mb=2048 \
	    -max_len=4096 -artifact_prefix=$(CACHE)/fuzz/$$target- $(CACHE)/fuzz/$$target fuzz/corpus/$$target; \
	done

image: build
	@tools/image.sh $(IMAGE_ARGS)

soak: build
	cargo build --locked --workspace --bin soak
	@target/debug/soak --out docs/soak.md $(SOAK_FLAGS)
	STRATA_E2E_AWAY=720 cargo test --workspace --locked --test e2e -- --test-threads 2 --nocapture that_stays_away_costs that_is_gone_leaves
	STRATA_E2E_AWAY=300 cargo test --workspace --locked --test e2e -- --nocapture kills_at_random_moments
