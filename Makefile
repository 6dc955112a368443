# The commands of this project. `make demo` and `make test` need git, make and a Rust toolchain. As root they install
# everything else; as another user they print the line that installs it.

CARGO ?= cargo
TOOLS := $(CURDIR)/.tools
export GRPCURL := $(TOOLS)/bin/grpcurl
export PYTHON := $(TOOLS)/venv/bin/python
export TOXIPROXY := $(TOOLS)/bin/toxiproxy-server
LAB := target/release/msg-dev lab
# `unshare --mount` gives the lab its own mounts, so that the small disks that it fills are unmounted when it ends.

.PHONY: help demo up build test test-unit test-sim test-it sim mutants docs fuzz faults soak test-lab test-lab-secure lint fmt bench bench-peers bench-check compose-test bare-test clean

help: ## Print this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 16

# Without default features, the services have no TLS to Kafka, and OpenSSL, which needs minutes, is not built. The C
# libraries are not optimized (their own -O2 comes before these flags), which halves their build.
demo: export CFLAGS += -O0 -g0
DEMO_BUILD := --no-default-features --package msg-gateway --package msg-transfer --package msg-dev
demo: ## Send a real chat log through both services, kill the transfer meanwhile, check every promise
	@scripts/setup build
	$(CARGO) build --profile demo --locked --package msg-fetch
	target/demo/msg-fetch & $(CARGO) build --profile demo --locked $(DEMO_BUILD) && \
	  wait && target/demo/msg-dev demo $(ARGS)

up: build ## Start Kafka, PostgreSQL and both services, and leave them running until Ctrl-C
	target/release/msg-dev up $(ARGS)

build: ## Build both services and msg-dev
	@scripts/setup build
	$(CARGO) build --release --locked --package msg-gateway --package msg-transfer --package msg-dev

test: test-unit test-sim test-it test-lab test-lab-secure ## Run all tests on the real components; at the end, list the tests that this machine leaves out
	@scripts/setup left-out

test-unit: ## Run unit and property tests and the fuzz corpus, and check the docs against the code
	@scripts/setup build
	$(CARGO) test --release --locked --workspace --lib --bins --test corpus --test docs

test-sim: ## Run the tests of the simulator, and 100,000 of its seeds
	@scripts/setup build
	$(CARGO) test --profile sim --locked --package msg-transfer-machine --package msg-transfer-simulator
	@$(MAKE) --no-print-directory sim SEEDS=100000

sim: ## Run the transfer's decisions against models of Kafka and PostgreSQL with faults: SEEDS=1000000
	$(CARGO) build --profile sim --locked --package msg-transfer-simulator
	target/sim/sim run --seeds 0..$(or $(SEEDS),100000) $(ARGS)

mutants: ## Plant bugs in a copy of the machine, one at a time, and check that the simulator finds them
	$(CARGO) build --profile sim --locked --package msg-transfer-simulator
	target/sim/sim mutants $(ARGS)

docs: ## Write the pages that are generated from the code: docs/configuration.md and docs/metrics.md
	@scripts/setup build
	UPDATE_DOCS=1 $(CARGO) test --release --locked --package msg-it --test docs

fuzz: ## Fuzz the code that reads requests and records: RUNS=1000000
	@scripts/setup fuzz
	scripts/fuzz

test-it: build ## Run the integration tests: the real services on a real Kafka and a real PostgreSQL
	@scripts/setup test
	$(CARGO) test --release --locked --package msg-it --test it -- --test-threads=3 $(ARGS)

test-lab: build ## Run the fault lab for three minutes; with TLS and logins: SECURE=1
	@scripts/setup faults
	$(LAB) --plan quick --seed 1 $(if $(SECURE),--secure)

test-lab-secure: build ## Run the fault lab for a minute, with TLS and logins
	@scripts/setup faults
	$(LAB) --secure --fault kill-gateway,kill-broker,half-open-transfers-postgres,kill-client --seed 1

faults: build ## Inject every fault once, or FAULT=kill-broker,... for MINUTES=10, and check every promise; report in target/lab
	@scripts/setup faults
	unshare --mount $(LAB) --report target/lab $(if $(FAULT),--fault $(FAULT),--plan matrix) $(if $(MINUTES),--minutes $(MINUTES)) $(ARGS)

soak: build ## Inject random faults for HOURS=8, and check every promise
	@scripts/setup faults
	unshare --mount $(LAB) --report target/lab --plan random --minutes $$(awk 'BEGIN { print $(or $(HOURS),1) * 60 }') $(ARGS)

lint: ## Run all static checks
	@scripts/setup lint
	$(CARGO) fmt --all --check
	$(CARGO) fmt --manifest-path tests/fuzz/Cargo.toml --check
	$(CARGO) clippy --release --locked --workspace --all-targets -- -D warnings
	$(TOOLS)/bin/cargo-deny --workspace --locked check bans licenses sources
	$(TOOLS)/bin/cargo-machete
	$(TOOLS)/venv/bin/typos
	$(TOOLS)/node_modules/.bin/buf lint
	@# The demo must be built without OpenSSL (ADR 7).
	@! $(CARGO) tree --locked $(DEMO_BUILD) --prefix none | grep openssl-sys
	@scripts/breaking
	@scripts/wide-markdown
	@scripts/vocabulary

fmt: ## Format the code
	$(CARGO) fmt --all
	$(CARGO) fmt --manifest-path tests/fuzz/Cargo.toml

BENCHES := send latency pipe drain watch idle secure fairness
BENCH := target/release/msg-bench
bench: build ## Measure throughput, latency and cost against limits of the same run, and write target/bench/report.html; one measurement: ARGS=send
	$(CARGO) build --release --locked --package msg-bench
	$(if $(ARGS),$(BENCH) $(ARGS),@for each in $(BENCHES); do \
	  echo "== $$each"; $(BENCH) $$each --json target/bench/$$each.json || exit 1; done; \
	  $(BENCH) report $(BENCHES:%=target/bench/%.json) --html target/bench/report.html --json target/bench/report.json)

bench-peers: build ## Measure `send` and `drain` next to other programs, and write target/bench/peers.html
	@scripts/setup peers
	$(CARGO) build --release --locked --package msg-bench
	@export PATH="$(TOOLS)/go/bin:$$PATH" GOTOOLCHAIN=local; for each in send drain; do \
	  echo "== $$each"; $(BENCH) $$each --peers --json target/bench/peers-$$each.json $(ARGS) || exit 1; done; \
	  $(BENCH) report target/bench/peers-send.json target/bench/peers-drain.json --html target/bench/peers.html

bench-check: build ## Compare what both services cost with tests/bench/recorded.json; after a change that is worth it: ARGS=--record
	@scripts/setup bench
	$(CARGO) build --release --locked --package msg-bench
	$(BENCH) instructions $(ARGS)
	$(BENCH) cpu $(ARGS)

compose-test: ## Start the containers, kill some, check, remove them; needs a Docker engine
	scripts/compose-test

bare-test: ## Run `make demo` and `make test` in a container with only Debian 12, git, make and Rust; needs a Docker engine
	scripts/bare-test

clean: ## Remove build results and downloaded tools
	rm -rf target .tools
