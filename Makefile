# Two commands matter: `make serve` and `make test`. Each fetches what it needs.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory --no-builtin-rules

# Set by the caller if needed; see `make help`.
PYTHON ?= python3
ARGS ?=
DATA ?=
SUITE ?=

CACHE := $(or $(VISAGE_CACHE),$(or $(XDG_CACHE_HOME),$(HOME)/.cache)/visage)
EVIDENCE := target/evidence
BINARY := target/release/visage
MEASURE := target/release/visage-measure

export VISAGE_CACHE := $(CACHE)
export PYTHON

# Starts a recipe that compiles: LIBTORCH is the machine's own or the fetched one.
WITH_LIBTORCH = LIBTORCH="$$($(PYTHON) deploy/fetch_libtorch.py)"; export LIBTORCH; unset LIBTORCH_USE_PYTORCH

# Starts a recipe that compiles the tests: by clippy, so that lint and test share one build, with assertions in our own
# code and the dependencies of the release binary. The binary itself remains the one of `make build`.
CHECKED = export RUSTC_WORKSPACE_WRAPPER=clippy-driver CARGO_PROFILE_RELEASE_OPT_LEVEL=1 \
  CARGO_PROFILE_RELEASE_DEBUG_ASSERTIONS=true CARGO_PROFILE_RELEASE_OVERFLOW_CHECKS=true; \
  mkdir -p target/release; if [ -e $(BINARY) ]; then rm -f $(KEPT); ln $(BINARY) $(KEPT); fi; \
  trap 'if [ -e $(KEPT) ]; then rm -f $(BINARY); mv $(KEPT) $(BINARY); fi' EXIT
KEPT := target/release/visage.kept
TESTS = --release --workspace --all-targets --locked

# Starts a recipe whose tests and suites read the published face weights: the machine's own or the fetched ones.
WITH_WEIGHTS = VISAGE_WEIGHTS="$$($(PYTHON) deploy/fetch_weights.py)"; export VISAGE_WEIGHTS

# Starts a recipe that runs peers: sets the Python that has their packages.
WITH_PEERS = VISAGE_PYTHON="$$($(PYTHON) deploy/venv.py clients/python/requirements.txt benches/peers/requirements.txt \
  --no-deps benches/peers/requirements-no-deps.txt)"; export VISAGE_PYTHON

.PHONY: help build serve test lint fmt measure bench eval clean tools

help: ## Show this list
	@awk 'BEGIN {FS = ":.*## "; print "make <target>\n"} \
	  /^[a-z-]+:.*## / {printf "  %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@printf '%s\n' '' \
	  '  ARGS="..."                   more arguments for serve, test, eval and bench' \
	  '  VISAGE_SERVER__LISTEN=...    and the like: any setting of the server (docs/configuration.md)' \
	  '  VISAGE_CACHE=DIR             where fetched things are kept (~/.cache/visage)' \
	  '  VISAGE_WEIGHTS=DIR           published face weights of your own; without it they are fetched' \
	  '  LIBTORCH=DIR                 a libtorch 2.11.0 of your own, LIBTORCH_USE_PYTORCH=1 that of your python3'

build: tools ## Compile the release binary, target/release/visage
	@$(WITH_LIBTORCH); cargo build --release --locked

serve: build ## Start a server on the folder visage-data
	@if [ -z "$${VISAGE_MODELS__PUBLISHED_DIR+set}" ]; then \
	  VISAGE_MODELS__PUBLISHED_DIR="$$($(PYTHON) deploy/fetch_weights.py)"; export VISAGE_MODELS__PUBLISHED_DIR; \
	fi; \
	exec $(BINARY) serve $(ARGS)

test: tools ## Run every test
	@$(PYTHON) -m unittest discover -s deploy/tests
	@VISAGE_PYTHON="$$($(PYTHON) deploy/venv.py clients/python/requirements.txt)"; export VISAGE_PYTHON; \
	$$VISAGE_PYTHON -m unittest discover -s clients/python/tests; \
	$(WITH_WEIGHTS); $(WITH_LIBTORCH); $(CHECKED); cargo test $(TESTS) $(ARGS)

lint: tools ## Check format, clippy, documentation, dependencies and Python types
	@cargo fmt --all --check
	@$(WITH_LIBTORCH); $(CHECKED); cargo test $(TESTS) --no-run --color=always 2>&1 | tee target/lint.log; \
	if grep -q 'generated .* warning' target/lint.log; then echo 'lint: the warnings above are errors here' >&2; exit 1; fi
	@$(WITH_LIBTORCH); $(CHECKED); RUSTDOC="$$PWD/deploy/rustdoc.sh" cargo test --release --workspace --doc --locked
	@$(PYTHON) docs/check.py
	@python="$$($(PYTHON) deploy/venv.py clients/python/requirements.txt deploy/lint-requirements.txt)"; \
	MYPYPATH="$$($$python clients/python/generate.py)" $$python -m mypy --config-file clients/python/pyproject.toml \
	  --cache-dir target/mypy clients/python/generate.py clients/python/src clients/python/tests deploy; \
	export PATH="$$(dirname $$python):$$PATH"; \
	if cargo deny --version >/dev/null 2>&1; then \
	  cargo deny --workspace --log-level warn check bans licenses sources; \
	else \
	  echo "lint: there is no cargo-deny for this machine, so licences and sources of dependencies were NOT checked."; \
	  echo "      To check them: cargo install cargo-deny --locked, then make lint"; \
	fi

fmt: tools ## Format the code
	@cargo fmt --all

# Two builds, so that the measured server is exactly the one of `make build`.
measure: build
	@$(WITH_LIBTORCH); cargo build --release --locked --package visage-benches

eval: measure ## Measure quality on a folder (DATA=, SUITE=faces or training; both without it) into target/evidence
	@$(if $(DATA),,echo 'eval needs a folder: make eval DATA=FOLDER (it holds faces.csv)' >&2; exit 2;) \
	$(WITH_PEERS); $(WITH_WEIGHTS); mkdir -p $(EVIDENCE); \
	missed=0; \
	for suite in $(or $(SUITE),faces training); do \
	  case "$$suite" in training) name=training-quality;; *) name=$$suite;; esac; \
	  $(MEASURE) eval --suite "$$suite" --data "$(DATA)" --json "$(EVIDENCE)/$$name.json" \
	    --page "$(EVIDENCE)/$$name.html" $(ARGS) || missed=1; \
	done; \
	exit $$missed

bench: measure ## Measure speed beside peers (SUITE=training, serve, similar or store; all without it), likewise
	@$(WITH_PEERS); $(WITH_WEIGHTS); mkdir -p $(EVIDENCE); \
	missed=0; \
	for suite in $(or $(SUITE),training serve similar store); do \
	  $(MEASURE) bench --suite "$$suite" --json "$(EVIDENCE)/$$suite.json" $(ARGS) || missed=1; \
	done; \
	exit $$missed

clean: ## Remove what was built (not the fetched cache, not the data folder)
	@rm -rf target clients/python/build
	@echo "The fetched libtorch and face weights stay in $(CACHE)."

# Reports a missing tool and how to get it, before a compiler fails less clearly.
tools:
	@missing=0; need() { echo "make: $$1 is missing. $$2" >&2; missing=1; }; \
	command -v cargo >/dev/null || need "the Rust toolchain" "Get it from https://rustup.rs, then open a new shell."; \
	command -v c++ >/dev/null || need "a C++ compiler" "Debian: apt install g++"; \
	command -v "$(PYTHON)" >/dev/null || need "Python 3 ($(PYTHON))" "Debian: apt install python3 python3-venv"; \
	[ "$$missing" -eq 0 ]; \
	"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 9))' \
	  || { echo "make: $(PYTHON) is older than 3.9. Set PYTHON to a newer one." >&2; exit 1; }
