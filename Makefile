# Everything that a person or CI calls. Each target brings what it needs (scripts/setup) before it starts.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
CARGO ?= cargo
TARGET = $(abspath $(or $(CARGO_TARGET_DIR),target))

.PHONY: help dev test lint bench torture controls deny clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

dev: ## Run a development service (DIR=path keeps its state; ARGS=... goes to `kms dev`)
	@scripts/setup run
	$(CARGO) run --package kms-cli --bin kms -- dev $(if $(DIR),--dir $(DIR)) $(ARGS)

test: ## Pass everything that a change must pass
	@scripts/setup test
	@$(MAKE) --no-print-directory lint
	$(CARGO) test --workspace --no-fail-fast

lint: ## Format, clippy, documentation, shell scripts, alerting rules: no warning passes
	@scripts/setup lint
	$(CARGO) fmt --all --check
	$(CARGO) clippy --quiet --workspace --all-targets -- --deny warnings
	RUSTDOCFLAGS="--deny warnings" $(CARGO) doc --quiet --workspace --no-deps
	shellcheck scripts/* .ci/run
	promtool check rules deploy/prometheus/kms.rules.yml
	promtool test rules deploy/prometheus/kms.test.yml

bench: ## Measure the service against the raw token, in one run (ARGS="--rounds 3 --json FILE" and others)
	@scripts/setup run
	$(CARGO) build --release --package kms-cli --package kms-bench
	KMS_BIN=$(TARGET)/release/kms $(TARGET)/release/kms-bench $(ARGS)

torture: ## The promises with their full figures: hours (TESTS="kills garbage" for some of them)
	@scripts/setup test
	@scripts/torture $(TESTS)

controls: ## Break the code on purpose, and see the tests of the promises fail (PROMISES="10 26" for some of them)
	@scripts/setup test
	@scripts/controls $(PROMISES)

deny: ## Licences, advisories and banned crates (needs `cargo install --locked cargo-deny`)
	$(CARGO) deny --workspace check

clean: ## Remove all that was built
	$(CARGO) clean
	rm -rf tests/clients/node/node_modules
