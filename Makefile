# What one does with this project. `make demo` and `make test` need git, make and a Rust toolchain; the rest they install,
# as root, or tell the line that does.

CARGO ?= cargo
TOOLS := $(CURDIR)/.tools
export GRPCURL := $(TOOLS)/bin/grpcurl
export PYTHON := $(TOOLS)/venv/bin/python
export TOXIPROXY := $(TOOLS)/bin/toxiproxy-server
LAB := target/release/msg-dev lab
# With mounts of its own (`unshare --mount`): the small disks that the lab fills are gone when its processes are.

.PHONY: help demo up build test test-unit test-sim test-it sim mutants docs fuzz faults soak test-lab lint fmt bench compose-test bare-test clean

help: ## This list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 16

demo: build ## Replay a real chat log through the whole pipe, kill the transfer in the middle, check every promise
	target/release/msg-dev demo $(ARGS)

up: build ## Start Kafka, PostgreSQL and both services, and leave them running until Ctrl-C
	target/release/msg-dev up $(ARGS)

build: ## Both services and msg-dev
	@scripts/setup build
	$(CARGO) build --release --locked --workspace --bins

test: test-unit test-sim test-it test-lab ## Everything, on the real components; at its end, what this machine leaves out
	@scripts/setup left-out

test-unit: ## Unit and property tests, what fuzzing found, and whether the docs are as the code
	@scripts/setup build
	$(CARGO) test --release --locked --workspace --lib --bins --test corpus --test docs

test-sim: ## The simulator, and 100,000 of its seeds
	@scripts/setup build
	$(CARGO) test --profile sim --locked --package msg-transfer-machine --package msg-transfer-simulator
	@$(MAKE) --no-print-directory sim SEEDS=100000

sim: ## What the transfer decides, against models of Kafka and PostgreSQL in which everything goes wrong: SEEDS=1000000
	$(CARGO) build --profile sim --locked --package msg-transfer-simulator
	target/sim/sim run --seeds 0..$(or $(SEEDS),100000) $(ARGS)

mutants: ## Plant bugs in a copy of the machine, one at a time, and see the simulator find them
	$(CARGO) build --profile sim --locked --package msg-transfer-simulator
	target/sim/sim mutants $(ARGS)

docs: ## Write the pages that are rendered from the code: docs/configuration.md and docs/metrics.md
	@scripts/setup build
	UPDATE_DOCS=1 $(CARGO) test --release --locked --package msg-it --test docs

fuzz: ## Throw bytes at what reads requests and records: RUNS=1000000
	@scripts/setup fuzz
	scripts/fuzz

test-it: build ## Integration tests: the real services on a real Kafka and a real PostgreSQL
	@scripts/setup test
	$(CARGO) test --release --locked --package msg-it --test it -- --test-threads=3 $(ARGS)

test-lab: build ## Three minutes of the fault lab
	@scripts/setup faults
	$(LAB) --plan quick --seed 1

faults: build ## Break everything once and check every promise, or FAULT=kill-broker,... for MINUTES=10; the report goes to target/lab
	@scripts/setup faults
	unshare --mount $(LAB) --report target/lab $(if $(FAULT),--fault $(FAULT),--plan matrix) $(if $(MINUTES),--minutes $(MINUTES)) $(ARGS)

soak: build ## Break things at random for HOURS=8
	@scripts/setup faults
	unshare --mount $(LAB) --report target/lab --plan random --minutes $$(awk 'BEGIN { print $(or $(HOURS),1) * 60 }') $(ARGS)

lint: ## Everything that reads the code without running it
	@scripts/setup lint
	$(CARGO) fmt --all --check
	$(CARGO) fmt --manifest-path fuzz/Cargo.toml --check
	$(CARGO) clippy --release --locked --workspace --all-targets -- -D warnings
	$(TOOLS)/bin/cargo-deny --workspace --locked check bans licenses sources
	$(TOOLS)/bin/cargo-machete
	$(TOOLS)/venv/bin/typos
	$(TOOLS)/node_modules/.bin/buf lint
	@scripts/breaking
	@scripts/wide-markdown

fmt: ## Format the code
	$(CARGO) fmt --all
	$(CARGO) fmt --manifest-path fuzz/Cargo.toml

bench: build ## How fast the pipe is, against limits measured in the same run
	target/release/msg-dev bench $(ARGS)

compose-test: ## Bring the containers up, break them, check, tear down; needs a Docker engine
	scripts/compose-test

bare-test: ## Run `make demo` and `make test` in a container with Debian 12, git, make and Rust only; needs a Docker engine
	scripts/bare-test

clean: ## Remove what was built and fetched here
	rm -rf target .tools
