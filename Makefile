# `make demo` shows jobstream, `make test` proves it. Either one starts from a bare checkout: all that they need is
# Python 3.11+, make and, for the tests, a Redis server, nginx, Prometheus, Chromium, Node.js, Podman and kubectl (which are
# installed where that can be done without asking).

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo dev test check setup tools lock clean

help: ## these lines
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: setup ## see it work, in one command (PORT=8000; KEEP=1 leaves it running)
	@exec .venv/bin/jobstream demo

dev: setup ## API, worker and Redis on this machine, until Ctrl-C
	@exec .venv/bin/jobstream dev

test: ## every test, against a real Redis and in a real browser (ARGS="-k words")
	@scripts/setup --dev --redis --browser --nginx --prometheus --deploy
	@exec .venv/bin/pytest -n auto --dist worksteal $(ARGS)

.PHONY: chaos
chaos: ## kill, freeze and cut everything 1,200 times; books must balance, watchers miss nothing (ARGS="--chaos-seed 7")
	@scripts/setup --dev --redis
	@exec .venv/bin/pytest tests/chaos/test_ledger.py tests/chaos/test_losses.py --chaos-long --capture=no $(ARGS)

.PHONY: mutations
mutations: ## break fences, leases and claims line by line; the tests must notice (ARGS="fenced")
	@scripts/setup --dev --redis
	@exec .venv/bin/python -m tests.mutations $(ARGS)

.PHONY: bench
bench: setup ## how fast it is, beside arq and the least that Redis must do (ARGS="--peers saq,taskiq,streaq")
	@exec .venv/bin/python -m benchmarks $(ARGS)

.PHONY: bench-live
bench-live: setup ## thousands of clients of one API process, beside other ways to serve them (ARGS="--clients 1000")
	@exec .venv/bin/python -m benchmarks.live $(ARGS)

.PHONY: fuzz
fuzz: tools ## send bytes of any kind to what reads them, led by coverage, for SECONDS (60)
	@.venv/bin/pip install --quiet --disable-pip-version-check --require-hashes -r requirements/fuzz.txt
	@exec .venv/bin/python -m tests.fuzz -max_total_time=$(or $(SECONDS),60) -max_len=2000 -verbosity=0

check: tools ## ruff, mypy and the import rules
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy
	.venv/bin/lint-imports

setup: ## make or repair .venv (PYTHON=python3.12 names the interpreter)
	@scripts/setup

tools:
	@scripts/setup --dev

LOCK = .venv/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate \
	--no-emit-index-url --system-certs --all-extras $(if $(UPGRADE),--upgrade) pyproject.toml

lock: export UV_CUSTOM_COMPILE_COMMAND = make lock
lock: setup ## pin what pyproject.toml asks for (UPGRADE=1 moves to the newest versions)
	@.venv/bin/uv --version >/dev/null 2>&1 || .venv/bin/pip install --quiet 'uv>=0.13'
	@$(LOCK) --group dev --output-file requirements/dev.txt >/dev/null
	@.venv/bin/uv pip compile --quiet --python-version 3.11 --generate-hashes --no-annotate --no-emit-index-url --system-certs \
		--group fuzz --output-file requirements/fuzz.txt >/dev/null
	@.venv/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate --no-emit-index-url \
		--system-certs --group deploy --constraints requirements/dev.txt --output-file requirements/deploy.txt >/dev/null
	@$(LOCK) --group build --constraints requirements/dev.txt --output-file requirements/runtime.txt >/dev/null

clean: ## remove .venv, caches and builds (the data in .jobstream stays)
	@rm -rf .venv dist build .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
