# One command each; CI runs the same. `make` alone lists them.
.DEFAULT_GOAL := help
SHELL := /bin/bash
TOOL := go tool -modfile=tools/go.mod
# check vets everything once; by itself, each go test would look through all libraries again.
TEST := go test -vet=off

# What takes minutes begins first, so that it does not have a processor to itself at the end.
LONGEST := ./server/internal/store ./device

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: demo
demo: ## server and three boards on this machine: a good update, a bad one that rolls back
	go run ./cmd/bmsota demo

.PHONY: build
build: ## the binary, ./bmsota
	CGO_ENABLED=0 go build -trimpath -o bmsota ./cmd/bmsota

SYSTEMS := linux/amd64 linux/arm64 linux/arm darwin/amd64 darwin/arm64 windows/amd64
DIST := dist

.PHONY: dist
dist: ## the binary for every system, and SHA256SUMS, in dist/
	@mkdir -p $(DIST) && rm -f $(DIST)/bmsota-* $(DIST)/SHA256SUMS
	@for s in $(SYSTEMS); do os=$${s%/*} arch=$${s#*/}; out=$(DIST)/bmsota-$$os-$$arch; [ $$os != windows ] || out=$$out.exe; \
		echo $$out; CGO_ENABLED=0 GOOS=$$os GOARCH=$$arch GOARM=7 go build -trimpath -o $$out ./cmd/bmsota || exit 1; done
	@cd $(DIST) && sha256sum bmsota-* > SHA256SUMS

.PHONY: sbom
sbom: build ## the binary's bill of materials (CycloneDX), bmsota.cdx.json
	./bmsota version --sbom > bmsota.cdx.json

.PHONY: reproduce
reproduce: ## two builds with empty caches, in two folders, make the same bytes
	go test -count=1 -timeout 60m -run SameInAnyFolder -v . -release

.PHONY: deps
deps: ## install what the tests need from Debian's packages, where it is missing
	@bash e2e/deps.sh

.PHONY: test
test: deps check race e2e ## everything a change must pass

.PHONY: check
check: ## format, vet, staticcheck, tidy, unit and architecture tests
	@test -z "$$(gofmt -l $$(git ls-files '*.go'))" || { echo "gofmt would change:"; gofmt -l $$(git ls-files '*.go'); exit 1; }
	go vet ./...
	$(TOOL) staticcheck ./...
	go mod tidy -diff
	$(TEST) -timeout 20m $(LONGEST) . $$(go list ./... | grep -v /e2e)

.PHONY: race
race: ## the packages with goroutines under the race detector (the sweeps have none, and run in check)
	$(TEST) -race -timeout 20m -skip 'PowerCutPairs|NoFlip|TestProof|RolloutGoesOn|PowerLoss|EveryGuard|KillAtEvery|FaultAtEvery|FaultWhile|RestoreAtEvery|PowerCutSweep|ResetsAtEvery|EveryBitOf|CutAtEverySector|MutantsAreNoticed|TestComponent|OverRandomFleets|CertificateFactory|TestABoardWithAKey|EveryPacket|EveryTLSRecord' ./server/internal/fleet $(LONGEST) ./server/... ./device/internal/agent ./deploy ./api ./demo ./cmd/...

.PHONY: e2e
e2e: ## the stories over the real binary; NAME=rollback runs those that match
	@test -n "$$IDF_PATH" || echo "e2e: IDF_PATH is not set: idf_ext.py is held against a loader of our own, not against the real idf.py"
	$(TEST) -count=1 -timeout 30m ./e2e/... $(if $(NAME),-run '//$(NAME)')

.PHONY: e2e-postgres
e2e-postgres: ## every story with a server in it, with its rows in PostgreSQL; NAME as above
	BMSOTA_E2E_DATABASE=postgres go test -count=1 -timeout 60m ./e2e/... -run 'TestScripts/postgres/$(NAME)'

.PHONY: explain-postgres
explain-postgres: ## fills a PostgreSQL with a million devices, where check has 20,000, and holds what is asked often to its indexes; N for another number
	BMSOTA_EXPLAIN=$(or $(N),1000000) go test -count=1 -timeout 60m -run AreAnsweredFromIndexesOfPostgres -v ./server/internal/store

.PHONY: fuzz
fuzz: ## every fuzz target for T (default 30s) in turn
	@for p in $$(go list ./...); do for f in $$(go test -list '^Fuzz' $$p | grep '^Fuzz'); do \
		echo "$$p $$f"; go test -run '^$$' -fuzz "^$$f$$" -fuzztime $(or $(T),30s) $$p || exit 1; done; done

.PHONY: variations
variations: ## N variations (default a million) of what the C component reads, against Go, from a new seed
	BMSOTA_VARIATIONS=$(or $(N),1000000) go test -count=1 -timeout 60m -run ComponentDecides -v ./firmware/host_test/hosttest

.PHONY: powercut
powercut: ## the long power-cut sweeps: every operation, several tears, all pairs, a full slot
	BMSOTA_POWERCUT=long go test -count=1 -timeout 180m -run 'PowerCut|NoFlip|CutEvery' -v ./device/...

.PHONY: crash
crash: ## the server's storage: the power goes after every operation, 200 kills; SEED repeats a run
	BMSOTA_CRASH=long BMSOTA_CRASH_SEED=$(SEED) go test -count=1 -timeout 60m -run 'PowerLoss|Guard|Kill|ConnectionCut' -v ./server/internal/store

.PHONY: rollout-sim
rollout-sim: ## a million simulated fleets, 1,000 boards updated to the last, 200 kills of the server
	BMSOTA_ROLLOUTS=long go test -count=1 -timeout 60m -run 'RandomFleets|SwitchedOff' -v ./server/internal/fleet
	BMSOTA_ROLLOUTS=long go test -count=1 -timeout 60m -run 'TestScripts/.*/rollout' -v ./e2e

.PHONY: replicas
replicas: ## three servers on one PostgreSQL behind one Mosquitto and one nginx, 60 boards, 60 kills and stops of any
	BMSOTA_REPLICAS=long go test -count=1 -timeout 60m -run 'TestScripts/postgres/replicas' -v ./e2e

.PHONY: system-sim
system-sim: ## boards, network, broker and server from N seeds (default 40), each twice; a day of 200 boards; SEED=5 replays one, with its trace
	$(if $(SEED),go test -count=1 -run 'TestSystem$$' -v ./server/internal/simulation -system-seed $(SEED),BMSOTA_SYSTEM=long go test -count=1 -timeout 120m -run 'TestSystem$$|Churn' -v ./server/internal/simulation -system-worlds $(or $(N),40))

.PHONY: load
load: ## 10,000 silent or slow connections to HTTPS and as many to MQTT beside devices that update; needs 20,000 open files
	BMSOTA_LOAD=long go test -count=1 -timeout 10m -run BesideSlowOnes -v ./server

.PHONY: bench
bench: ## the benchmarks behind docs/benchmarks.md
	go test -run '^$$' -bench . -benchmem $$(go list ./... | grep -v /e2e)

.PHONY: vuln
vuln: ## known vulnerabilities as in check, and permissions that have run out; with DB=live the newest of vuln.go.dev
	go test -count=1 -run KnownVulnerability -v . -release
	$(if $(filter live,$(DB)),$(TOOL) govulncheck ./...)

.PHONY: dead
dead: ## code nothing reaches
	$(TOOL) deadcode -test ./...
