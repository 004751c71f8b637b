# `make` lists what there is. Each target sets up what it needs and is quick about it when all is there.

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint bench bench-browser wheel npm build fmt clean \
	test-core test-cli test-suite test-rust test-features test-wasm test-targets test-msrv test-python test-types \
	test-page test-npm test-runtimes test-api test-fuzz test-smoke test-docs deny

help: ## What there is
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: ## Python processes, a shell script and a page in a browser take turns at one lock
	@demo/run

test: ## Every test and check there is
	@scripts/run-tests

lint: ## Formatting, clippy, types, scripts, dependencies
	@scripts/run-tests format lint types msrv deny

bench: ## Windlass and its peers, side by side; writes docs/benchmarks.md
	@scripts/bench

bench-browser: ## The npm package in Chromium, beside navigator.locks; writes into docs/npm.md
	@scripts/bench-browser

wheel: ## The Python package, in target/wheels, installed into .venv
	@scripts/wheel --release

npm: ## The npm package, in target/npm
	@scripts/npm

build: ## The command `windlass`, in target/release
	@scripts/setup system rust
	@cargo build --locked --release -p windlass-cli

setup: ## Installs everything that the tests need
	@scripts/setup

fmt: ## Formats Rust, Python and Go
	@scripts/setup rust python go
	@cargo fmt --all
	@cargo fmt --manifest-path fuzz/Cargo.toml
	@.venv/bin/ruff format --quiet .
	@gofmt -w bench/peers tests

test-core: ## The crate: rules, backends, client
	@scripts/run-tests core
test-cli: ## The command
	@scripts/run-tests cli
test-suite: ## Conformance, simulation, foreign programs
	@scripts/run-tests suite
test-rust: ## All Rust tests
	@scripts/run-tests rust
test-features: ## Each feature of the crate alone; no runtime in the bare core
	@scripts/run-tests features
test-wasm: ## The core for a browser
	@scripts/run-tests wasm
test-targets: ## The core for Windows and macOS
	@scripts/run-tests targets
test-msrv: ## The oldest Rust
	@scripts/run-tests msrv
test-python: ## The Python package, as built
	@scripts/run-tests python
test-types: ## mypy, pyright, stubs
	@scripts/run-tests types
test-smoke: ## The wheel on the oldest and newest Python
	@scripts/run-tests smoke
test-page: ## The server's page in a browser
	@scripts/run-tests page
test-npm: ## The npm package, as packed, in Node
	@scripts/run-tests npm
test-runtimes: ## The same in browsers, edge runtimes, Deno, Bun and all Nodes, and by bundlers
	@scripts/run-tests runtimes
test-api: ## The server as its OpenAPI document and the docs' examples describe it
	@scripts/run-tests api
test-fuzz: ## The parsers, fed with what nobody would send
	@scripts/run-tests fuzz
test-docs: ## The crate's documentation
	@scripts/run-tests docs
deny: ## Licences and sources of dependencies
	@scripts/run-tests deny

clean: ## Removes everything that was built
	@rm -rf target .venv dist
