# The two commands that must always work on a fresh Debian or Ubuntu machine: `make demo` and `make test`.

CARGO ?= cargo
export CARGO_TERM_COLOR ?= auto
# rustup puts cargo here; a shell that was open before the install does not know it yet.
export PATH := $(PATH):$(HOME)/.cargo/bin

TRIPLE := $(shell uname -m)-unknown-linux-gnu
WORKLOAD := target/$(TRIPLE)/release/berth-test-workload
PACK_IMAGE := target/release/pack-image
AS_ROOT := $(shell [ "$$(id -u)" = 0 ] || echo sudo)

SECONDS ?= 60
SEEDS ?= 0..2000
ROUNDS ?= 1000

.PHONY: help demo test bench bench-node bench-placement bench-autoscale bench-control sim soak fuzz fuzz-api lint build clean setup-build setup-demo setup-test

help: ## Show this list.
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

demo: setup-demo build $(PACK_IMAGE) ## Run a real stack on three machines, lose one, and show it survives (needs root).
	$(AS_ROOT) demo/run.sh

test: setup-test $(WORKLOAD) ## Run every test; those that need root are skipped, and named, without it.
	scripts/test.sh

bench: setup-test build ## Measure what SPECIFICATION.md promises; writes a table and JSON below target/bench.
	$(AS_ROOT) benches/run.sh

bench-node: setup-test build ## Measure a machine with 200 replicas, pulls and programs beside raw containerd and ctr.
	$(AS_ROOT) benches/run.sh node

bench-autoscale: setup-build ## Play loads against the rule of scaling and that of Kubernetes; prints a table in seconds.
	cargo run --release --quiet --package berth-benches --bin berth-bench-autoscale

bench-control: setup-build ## Measure sessions, writes, placements, recovery and failover of the scheduler; needs etcd for some.
	$(CARGO) build --release --locked --workspace --bin berth-scheduler --bin berth-bench-control
	target/release/berth-bench-control

bench-placement: setup-build ## Measure placement against published results and bounds; writes docs/placement-report.md.
	benches/placement.sh

sim: setup-build ## Simulate whole clusters under faults, one run for each seed of SEEDS (0..2000); KEEP=N,N does only these actions.
	$(CARGO) run --release --locked --quiet -p berth-tests --bin simulate -- $(SEEDS) $(if $(KEEP),--keep $(KEEP))

soak: setup-test $(WORKLOAD) ## Kill daemons and containerd ROUNDS (1000) times under a changing workload; looks for leaks and doubles each time.
	$(CARGO) build --workspace --bins --locked
	BERTH_FAULT_ROUNDS=$(ROUNDS) $(CARGO) test --locked -p berth-tests --test host_dev_behaviour fault_01 -- --nocapture

fuzz-api: setup-test ## Drive a scheduler by its own OpenAPI description for SECONDS (60), with invalid requests too.
	scripts/fuzz-api.sh $(SECONDS)

fuzz: setup-build ## Fuzz one TARGET (engine, layer, link, manifest, reference), or each, for SECONDS (60).
	scripts/fuzz.sh $(SECONDS) $(TARGET)

lint: setup-build ## Check formatting and lints.
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings
	@! grep -rnE '\b(todo|unimplemented)!\(' --include='*.rs' . --exclude-dir=target

build: setup-build $(WORKLOAD) ## Build the programs, optimised.
	$(CARGO) build --release --locked -p berth-cli -p berth-scheduler -p berth-node -p berth-collector

# Static, so that its image needs nothing else.
$(WORKLOAD): setup-build $(wildcard tests/workload/src/*.rs) tests/workload/Cargo.toml
	$(CARGO) rustc --release --locked -p berth-test-workload --target $(TRIPLE) -- -C target-feature=+crt-static

$(PACK_IMAGE): build
	$(CARGO) build --release --locked -p berth-tests --bin pack-image

setup-build:
	@scripts/setup.sh build

setup-demo:
	@scripts/setup.sh build run demo

setup-test:
	@scripts/setup.sh build run test

clean: ## Remove what was built.
	$(CARGO) clean
