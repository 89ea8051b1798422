# One command for each task. `make` alone lists them. Works with GNU make 3.81 (macOS).
SHELL := /bin/sh
.DEFAULT_GOAL := help
.SUFFIXES:

PY := .venv/bin/python
RUN := .venv/.installed
DEV := .venv/.installed-dev

.PHONY: help demo check test lint docs surface stubs servers lock lowest releases chaos bench bench-server bench-overload bench-drain bench-short clean

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-14s %s\n", $$1, $$2 }' Makefile

demo: $(RUN) ## run the shop on this machine until Ctrl-C (MESH_PORT, MESH_DURATION, MESH_POLICY)
	@exec $(PY) -m services.demo

check: $(DEV) ## run what takes under a minute: lint, and the tests that need no server
	@$(PY) tools/check.py

test: $(DEV) ## run all tests, several at a time; ARGS="-k retry" passes options to pytest
	@$(PY) -m pytest -n auto --dist loadfile --no-loadscope-reorder $(ARGS)

lint: $(DEV) ## run ruff and mypy --strict; check that stubs and docs are up to date and contracts compatible
	@$(PY) tools/check.py --lint

docs: $(DEV) ## generate docs/api.md from the docstrings, and the pictures and the table of docs/policies.md
	@$(PY) tools/api.py
	@$(PY) tools/policy_pictures.py

surface: $(DEV) ## update docs/public_api.txt after an intended change of the public API
	@$(PY) tools/public_api.py

stubs: $(DEV) ## generate stubs/mesh from protos/
	@$(PY) tools/stubs.py

servers: ## build Consul, Jaeger and a gRPC server in Go for the tests (needs Go); find PostgreSQL and libfaketime
	@tools/servers/build.sh consul github.com/hashicorp/consul
	@tools/servers/build.sh jaeger github.com/jaegertracing/jaeger/cmd/jaeger
	@tools/servers/build.sh gopeer .
	@tools/servers/postgres.sh
	@tools/servers/faketime.sh

lock: $(DEV) ## regenerate the lock files from pyproject.toml (UPGRADE=1 takes the newest versions)
	@tools/lock.sh $(if $(UPGRADE),--upgrade)

lowest: $(DEV) ## test lb at the lowest versions that pyproject.toml allows
	@tools/lowest.sh

releases: $(DEV) ## test lb with each release of grpcio that it supports, as a table (RELEASES="1.80.0 1.80.1" for some)
	@tools/releases.sh

chaos: $(DEV) ## cause faults under load and print what they cost (ROWS=3,7 for some rows; STRICT=1 fails on missed goals)
	@$(PY) -m tests.chaos $(ROWS) $(ARGS)

bench: $(DEV) ## measure calls, picks, memory and imports against grpcio's own channel (ten minutes; STRICT=1 fails on missed goals)
	@$(PY) -m bench

bench-server: $(DEV) ## measure how much one server process serves, beside grpcio's hello world (eight minutes)
	@$(PY) bench/server.py

bench-overload: $(DEV) ## ask servers, and the whole shop, for many times what they can do (eight minutes)
	@$(PY) bench/overload.py

bench-drain: $(DEV) ## restart servers one after the other under load (a minute; needs Consul: make servers)
	@$(PY) bench/drain.py

bench-short: $(DEV) ## run short forms of the three, for CI: they check what must hold on any machine (four minutes)
	@$(PY) bench/server.py --short && $(PY) bench/overload.py --short && $(PY) bench/drain.py --short

clean: ## remove .venv with all that is installed in it, caches and built servers
	rm -rf .venv .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find lb services stubs tests tools -name __pycache__ -type d -prune -exec rm -rf {} +

$(RUN): requirements.lock pyproject.toml
	@tools/venv.sh requirements.lock $@

$(DEV): requirements-dev.lock pyproject.toml
	@tools/venv.sh requirements-dev.lock $@ && touch $(RUN)
