# `make help` lists what there is. Every target sets up what it needs first (tools/setup.sh).
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

NODES ?= 3
MODE ?= vxlan
FAMILY ?= dual
MANIFEST ?=
IMAGE ?= localhost/podlane:dev
ONLY ?=
NETWORK ?= podlane
KUBECONFIG_OUT ?=
PEER ?=
PROCESSES ?= 3
KERNELS ?= 6.1 6.12 newest
ARGS ?=
N ?= 10000000
SEED ?=

BIN := .venv/bin
COMPILER := $(BIN)/python -m dataplane.kernel.compiler
AS_ROOT := $(if $(filter 0,$(shell id -u)),,sudo)
PYTHON_DIRS := $(wildcard dataplane cli bench tests)

# Our C programs, as name=source: each becomes build/podlane-NAME, static, for it runs in other roots.
C_PROGRAMS := \
	cni=dataplane/cni/shim.c \
	stand-in=dataplane/lab/standin.c \
	bench-load=bench/load.c
C_PAIRS := $(foreach pair,$(C_PROGRAMS),$(if $(wildcard $(lastword $(subst =, ,$(pair)))),$(pair)))
C_TOOLS := $(foreach pair,$(C_PAIRS),build/podlane-$(firstword $(subst =, ,$(pair))))
IMAGE_FILE := build/podlane-image.tar
IMAGE_SOURCES := pyproject.toml requirements.lock README.md LICENSE tools/image.sh tools/image.py \
	$(shell find bpf cli dataplane -type f -not -path '*/__pycache__/*')
C_FORMATTED := $(wildcard bpf/*.h bpf/*.c dataplane/*/*.c dataplane/*/*.h bench/*.c)

# What a person gave, as one word of the shell.
quoted = '$(subst ','\'',$(1))'

.PHONY: help setup demo test image test-cni cluster-setup cluster-up cluster-down test-cluster conformance soak test-vm lint fmt fuzz-packets fuzz fuzz-mutants bench tools lock clean FORCE

help: ## what can be made
	@echo "make TARGET [NAME=value…]:"
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 14 | sed 's/^/  /'

setup: ## install Debian packages and .venv (says first what it changes; does nothing the second time)
	@tools/setup.sh

define c_program
build/podlane-$(firstword $(subst =, ,$(1))): $(lastword $(subst =, ,$(1))) $(wildcard $(dir $(lastword $(subst =, ,$(1))))*.h) | setup
	@mkdir -p build
	$$(CC) -std=gnu11 -O2 -Wall -Wextra -Werror -static -pthread -o $$@ $$<
endef
$(foreach pair,$(C_PAIRS),$(eval $(call c_program,$(pair))))

tools: setup $(C_TOOLS) ## compile the C programs into build/

demo: tools ## a cluster on this machine: [MANIFEST=path] [NODES=3] [MODE=vxlan|native]
	@echo "demo: makes namespaces of its own and takes them down again; needs root; about a minute"
	@$(AS_ROOT) $(BIN)/podlane lab demo $(if $(MANIFEST),-f $(call quoted,$(MANIFEST))) --nodes $(call quoted,$(NODES)) --mode $(call quoted,$(MODE))

test: lint tools ## lint, then the unit, program and network tests: [ARGS=…for pytest]
	@echo "test: makes namespaces of its own and takes them down again; needs root; up to 15 minutes"
	@$(AS_ROOT) $(COMPILER) --out build/podlane.bundle
	@$(AS_ROOT) $(COMPILER) --stats build/podlane.bundle
	@$(AS_ROOT) $(BIN)/pytest tests/unit tests/vm tests/program tests/network $(ARGS)

soak: tools ## the long versions of the tests of a flow's life: ten minutes of load, a hundred kills
	@echo "soak: makes namespaces of its own and takes them down again; needs root; about 20 minutes"
	@$(AS_ROOT) env PODLANE_SOAK=1 $(BIN)/pytest -s tests/network/test_life_churn.py tests/network/test_life_full.py \
		tests/network/test_cni_growth.py

test-vm: tools ## the program tests and a small network test in virtual machines: [KERNELS="6.1 6.12 newest"] [ARGS="-k name"]
	@tools/setup.sh vm
	@$(AS_ROOT) $(BIN)/python -m tests.vm $(KERNELS) $(ARGS)

# The callers are Go programs of others, or built on others' libraries: cnitool is the specification's.
CNITOOL := github.com/containernetworking/cni/cnitool@v1.2.3

test-cni: $(IMAGE_FILE) ## the plugin under containerd, cnitool and Debian's plugins, and the image; needs Go
	@tools/setup.sh cni
	@command -v go >/dev/null || { echo "test-cni: there is no Go (1.21 or newer) on the PATH" >&2; exit 2; }
	@mkdir -p build/go
	@GOBIN=$(CURDIR)/build/go go install $(CNITOOL)
	@cd tests/cni/callers && go build -o $(CURDIR)/build/go/callers . && go build -o $(CURDIR)/build/go/cri ./cri
	@$(AS_ROOT) $(BIN)/pytest tests/cni $(ARGS)

cluster-setup: tools
	@tools/setup.sh cluster
	@command -v go >/dev/null || { echo "cluster: there is no Go (1.24 or newer) on the PATH" >&2; exit 2; }

cluster-up: $(if $(filter podlane,$(NETWORK)),$(IMAGE_FILE)) cluster-setup ## a real Kubernetes in namespaces of this machine: [KUBECONFIG_OUT=file] [NETWORK=podlane|peer|none] [FAMILY=dual|ipv4|ipv6]
	@$(AS_ROOT) $(BIN)/python -m tests.cluster up --network $(call quoted,$(NETWORK)) --mode $(call quoted,$(MODE)) --family $(call quoted,$(FAMILY)) $(if $(KUBECONFIG_OUT),--kubeconfig-out $(call quoted,$(KUBECONFIG_OUT)))

test-cluster: $(IMAGE_FILE) cluster-setup ## an API server that fails, a bare cluster that podlane is applied to, then every [sig-network] conformance test with it
	@$(AS_ROOT) $(BIN)/python -m tests.cluster.faults
	@$(AS_ROOT) $(BIN)/python -m tests.cluster.bare
	@$(AS_ROOT) $(BIN)/python -m tests.cluster conformance --processes 1 --mode $(call quoted,$(MODE))

# A test that fails is a row of the table, and the target's exit status.
conformance: $(IMAGE_FILE) cluster-setup ## Kubernetes' conformance and all others of [sig-network], and docs/conformance.md: [PEER=1: kube-proxy with bridge, too] [PROCESSES=3: tests at a time]
	@status=0; \
	$(AS_ROOT) $(BIN)/python -m tests.cluster conformance --all --nodes 3 --processes $(call quoted,$(PROCESSES)) --mode $(call quoted,$(MODE)) || status=$$?; \
	$(if $(PEER),$(AS_ROOT) $(BIN)/python -m tests.cluster conformance --all --nodes 3 --processes $(call quoted,$(PROCESSES)) --peer || true;) \
	$(BIN)/python -m tests.cluster.report; exit $$status

cluster-down: ## take that cluster away
	@$(AS_ROOT) $(BIN)/python -m tests.cluster down

build/image-name: FORCE
	@mkdir -p build
	@echo $(call quoted,$(IMAGE)) | cmp -s - $@ || echo $(call quoted,$(IMAGE)) >$@

# Made again when what goes into it has changed, or when somebody asks for it.
$(IMAGE_FILE): $(IMAGE_SOURCES) build/podlane-cni build/image-name | tools
	@echo "image: downloads about 60 MB of Debian packages; needs root; two minutes"
	@tools/setup.sh image
	@$(AS_ROOT) $(COMPILER) --out build/podlane.bundle
	@$(AS_ROOT) tools/image.sh $(call quoted,$(IMAGE))

image: ## build/podlane-image.tar for a container runtime, without Docker: [IMAGE=localhost/podlane:dev]
	@$(AS_ROOT) rm -f $(IMAGE_FILE)
	@$(MAKE) --no-print-directory $(IMAGE_FILE)

lint: setup ## ruff, mypy, import borders, clang-format, every header of bpf/ alone
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy $(PYTHON_DIRS)
	$(BIN)/lint-imports --no-logo
	clang-format --dry-run -Werror $(C_FORMATTED)
	$(COMPILER) --check-headers bpf/

fmt: setup ## put Python and C into the form that lint wants
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .
	clang-format -i $(C_FORMATTED)

fuzz-packets: setup ## random and mutated packets through every program: [N=10000000] [SEED=word]
	@echo "fuzz-packets: test runs in namespaces of its own; needs root; about 25 s a million on two idle CPUs"
	@$(AS_ROOT) $(BIN)/python -m tests.program.fuzz --packets $(call quoted,$(N)) $(if $(SEED),--seed $(call quoted,$(SEED)))

fuzz: setup ## random objects and packets to the programs and the reference model: [N=10000000] [SEED=word]
	@echo "fuzz: test runs in namespaces of its own; needs root; about 30 s a million on two idle CPUs"
	@$(AS_ROOT) $(BIN)/python -m tests.program.differential --packets $(call quoted,$(N)) $(if $(SEED),--seed $(call quoted,$(SEED)))

fuzz-mutants: setup ## does fuzz find one-line faults built into copies of bpf/ and core? [ONLY=name]
	@echo "fuzz-mutants: test runs in namespaces of its own; needs root; about five minutes on two idle CPUs"
	@$(AS_ROOT) $(BIN)/python -m tests.program.differential.mutants $(if $(ONLY),--only $(call quoted,$(ONLY)))

bench: tools ## ours against the kernel's own: [ONLY=name]; a table, build/bench/NAME.json, table.md, plots of it
	@echo "bench: makes namespaces of its own and takes them down again; needs root; up to 15 minutes"
	@$(AS_ROOT) $(BIN)/python -m bench $(if $(ONLY),--only $(call quoted,$(ONLY)))
	@$(BIN)/python -m bench --markdown >build/bench/table.md
	@$(BIN)/python -m bench --charts build/bench/table.md

lock: ## write requirements.lock anew from pyproject.toml, with today's versions
	rm -rf build/lock
	/usr/bin/python3 -m venv build/lock
	build/lock/bin/pip install --quiet uv
	build/lock/bin/uv pip compile --quiet --upgrade --extra dev --generate-hashes --python-version 3.11 \
		--no-header --no-annotate --output-file requirements.lock pyproject.toml
	rm -rf build/lock

clean: ## remove what was built (not .venv)
	$(AS_ROOT) rm -rf build podlane.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	$(AS_ROOT) find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
