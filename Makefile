# Berth. `make` alone lists what there is.

GO        ?= go
PREFIX    ?= /usr/local
DESTDIR   ?=
BINDIR    := $(PREFIX)/bin
UNITDIR   ?= $(PREFIX)/lib/systemd/system
BASHDIR   ?= $(PREFIX)/share/bash-completion/completions
ZSHDIR    ?= $(PREFIX)/share/zsh/site-functions
FISHDIR   ?= $(PREFIX)/share/fish/vendor_completions.d

VERSION   ?= # the one in internal/daemon/describe.go unless given
COMMIT    := $(shell git rev-parse --short=9 HEAD 2>/dev/null || echo unknown)
# The time of the commit, not of the build: the same commit gives the same bytes.
BUILDTIME := $(shell git log -1 --format=%cI 2>/dev/null || echo unknown)

export CGO_ENABLED = 0
MODULE    := berth.dev/berth/internal
VARIABLES := -X $(MODULE)/daemon.GitCommit=$(COMMIT) -X $(MODULE)/daemon.BuildTime=$(BUILDTIME) \
             -X $(MODULE)/cli.gitCommit=$(COMMIT) -X $(MODULE)/cli.buildTime=$(BUILDTIME)
ifneq ($(strip $(VERSION)),)
VARIABLES += -X $(MODULE)/daemon.Version=$(strip $(VERSION)) -X $(MODULE)/cli.version=$(strip $(VERSION))
endif
BUILD     := $(GO) build -trimpath -buildvcs=false -ldflags "-s -w $(VARIABLES)"

STARTER   := internal/image/starter/hello.tar.gz
RUNTIME   := $(if $(wildcard cmd/berth-runtime/*.go),berth-runtime)
PROGRAMS  := berth berthd berth-keeper $(RUNTIME)
INSTALLED := $(PROGRAMS) berth-init
FUZZTIME  ?= 20s
PACKAGES  ?= ./...
TESTFLAGS ?= -p 2 -timeout 12m

.DEFAULT_GOAL := help
.PHONY: help build run test check lint bench fuzz stress conformance test-vm test-systemd-vm dev install uninstall clean starter test-deps

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: starter ## build the static programs into bin/
	@mkdir -p bin
	$(BUILD) -o bin/ $(PROGRAMS:%=./cmd/%)
	@$(GO) run -buildvcs=false ./cmd/berth-init bin/berth-init

# The image that comes with the engine: a static program and nothing else.
starter: $(STARTER)
$(STARTER): $(wildcard cmd/hello/*.go internal/image/mkstarter/*.go)
	@mkdir -p bin/.starter $(@D)
	$(GO) build -trimpath -buildvcs=false -ldflags "-s -w -buildid=" -o bin/.starter/hello ./cmd/hello
	$(GO) run -buildvcs=false ./internal/image/mkstarter bin/.starter/hello $@

run: build ## build, then run the first container (starts the engine when none runs)
	bin/berth run --rm hello

test-deps: # what the tests need beyond Go, git and make
	@scripts/install-test-deps

check: starter # formatting and vet
	@bad=$$(gofmt -l $$(git ls-files -co --exclude-standard '*.go')); [ -z "$$bad" ] || { echo "gofmt wants to change:"; echo "$$bad"; exit 1; }
	$(GO) vet ./...

test: test-deps check build ## install what the tests need, then unit, root and client tests
	scripts/test $(TESTFLAGS) $(PACKAGES)

lint: check ## golangci-lint with this house's rules
	$(GO) tool -modfile=tools/go.mod golangci-lint run ./...

bench: build ## measure beside the engines that are installed here
	$(GO) run ./test/bench

fuzz: starter ## run each fuzz test for FUZZTIME (20s)
	@scripts/fuzz $(FUZZTIME)

stress: test-deps build ## 2,000 containers in random order, the engine killed 20 times; long races
	BERTH_STRESS=full scripts/test -count 1 -v -timeout 60m -run TestStress ./test/stress
	BERTH_STRESS=full scripts/test -count 1 -v -timeout 60m -run 'Race$$' ./test/hostile

conformance: test-deps build ## suites written for other engines; test/conformance/exceptions tells what is left out
	scripts/conformance

test-vm: test-deps build ## the root tests in a small virtual machine: Debian's kernel, cgroup v2
	scripts/test-vm

test-systemd-vm: test-deps build ## the cgroup driver systemd, in a virtual machine that it is the init of, on cgroup v2 and v1
	scripts/test-systemd-vm
	CGROUP=1 scripts/test-systemd-vm

dev: build ## a private engine in a temporary directory
	@scripts/dev

install: build ## install programs, systemd units and completions (PREFIX, DESTDIR)
	install -d $(DESTDIR)$(BINDIR) $(DESTDIR)$(UNITDIR) $(DESTDIR)$(BASHDIR) $(DESTDIR)$(ZSHDIR) $(DESTDIR)$(FISHDIR)
	install -m 0755 $(INSTALLED:%=bin/%) $(DESTDIR)$(BINDIR)
	sed 's|@BINDIR@|$(BINDIR)|g' scripts/systemd/berthd.service > $(DESTDIR)$(UNITDIR)/berthd.service
	install -m 0644 scripts/systemd/berthd.socket $(DESTDIR)$(UNITDIR)
	bin/berth completion bash > $(DESTDIR)$(BASHDIR)/berth
	bin/berth completion zsh > $(DESTDIR)$(ZSHDIR)/_berth
	bin/berth completion fish > $(DESTDIR)$(FISHDIR)/berth.fish
	@echo "Installed. With systemd: systemctl daemon-reload && systemctl enable --now berthd.socket"

uninstall: ## remove what install has put there; data stays
	rm -f $(INSTALLED:%=$(DESTDIR)$(BINDIR)/%) $(DESTDIR)$(UNITDIR)/berthd.service $(DESTDIR)$(UNITDIR)/berthd.socket
	rm -f $(DESTDIR)$(BASHDIR)/berth $(DESTDIR)$(ZSHDIR)/_berth $(DESTDIR)$(FISHDIR)/berth.fish

clean: ## remove what make has built
	rm -rf bin $(STARTER)
