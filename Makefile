# Needs make and Python 3.10 or newer; each target makes what it needs below .venv and .cache.
# Another interpreter: make test PYTHON=python3.12

.DEFAULT_GOAL := help
.PHONY: help demo test lint bench docs clean
# Targets share one .venv, which two installations at a time would spoil.
.NOTPARALLEL:

help: ## List the targets
	@sed -nE 's/^([a-z]+):.*## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

demo: ## Serve and monitor a real model on this machine (ARGS="--help" lists the options)
	@.ci/venv.sh demo
	@.venv/bin/otel-model-metrics demo $(ARGS)

# Without the backends, of which the Collector is built, the tests still run: those that need one skip with the
# reason, and fail where CI=true. All tests are run by several processes, some of them by one.
test: lint ## Check style and types, then run all tests (PYTEST_ARGS="-k name" picks some)
	@.ci/backends.sh >/dev/null || true
	@.ci/collector.sh >/dev/null || true
	@.ci/redis.sh >/dev/null || true
	@.ci/chromium.sh >/dev/null || true
	@.venv/bin/python -m pytest $(or $(PYTEST_ARGS),--numprocesses=auto --maxprocesses=8 --dist=worksteal)

lint: ## Check style and types
	@.ci/venv.sh dev
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .
	@.venv/bin/mypy

bench: ## Measure what the library costs (ARGS="--help" lists the options)
	@.ci/venv.sh dev bench
	@.ci/redis.sh >/dev/null || true
	@.venv/bin/python tests/benchmarks.py $(ARGS)

docs: ## Rebuild the generated parts of the repository
	@.ci/venv.sh dev
	@.venv/bin/python -m otel_model_metrics docs
	@.venv/bin/otel-model-metrics grafana --out grafana

clean: ## Remove everything that is not in git: .venv, .cache, caches, builds
	@rm -rf .venv .cache .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
