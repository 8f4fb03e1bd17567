# Every target sets up .venv from requirements.lock by itself; it needs Python >= 3.11 and make, and uses uv when present.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
READY := .venv/.ready

.PHONY: run demo test test-browser test-docs test-image test-operations test-release lint bench soak wheel release docs image kubernetes \
	lock lock-docs lock-operations clean

run: $(READY)
	$(BIN)/evergreen serve

demo: $(READY)
	$(BIN)/evergreen demo

# Most tests wait, for disks and for other processes: four at once take half the time on two processors. They start some
# hundred Python processes: what is compiled is kept for the next one, whatever the environment says. All they ask is plain
# HTTP on this machine: without certificates to read, an HTTP client is made in 1 ms instead of 20.
test: $(READY)
	PYTHONDONTWRITEBYTECODE= SSL_CERT_FILE= SSL_CERT_DIR=/dev/null $(BIN)/python -m pytest -n 4 --dist loadfile --no-loadscope-reorder tests

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy service training monitoring client/evergreen_client

bench: $(READY)
	$(BIN)/python -m benchmarks

soak: $(READY)
	$(BIN)/python -m benchmarks.fits
	$(BIN)/python -m benchmarks.soak
	$(BIN)/python -m benchmarks.hosts

# The wheels as a stranger has them: in a fresh environment, $$there/env, outside the checkout.
INSTALLED := set -e; there=$$(mktemp -d); trap 'rm -rf $$there' EXIT; \
	for project in . client; do \
		$(BIN)/uv build -q --wheel --no-build-isolation --python $(BIN)/python -o $$there $$project; \
	done; \
	$(BIN)/uv venv -q --python $(BIN)/python $$there/env; \
	$(BIN)/uv pip install -q --python $$there/env/bin/python --require-hashes -r deploy/requirements.lock; \
	$(BIN)/uv pip install -q --python $$there/env/bin/python --no-deps $$there/*.whl

wheel: $(READY)
	@$(INSTALLED); cd $$there && env/bin/evergreen --version && env/bin/evergreen demo

# The wheels of a release, in dist/, with their bills of materials: see deploy/release.sh.
release: $(READY)
	deploy/release.sh

test-release: $(READY)
	$(BIN)/python -m pytest -o faulthandler_timeout=0 tests/release

# The documents as a site that opens from disk. What builds it is locked apart, so that nobody who installs Evergreen has it.
DOCS := build/docs
docs: $(DOCS)/env/.ready
	@NO_MKDOCS_2_WARNING=1 $(DOCS)/env/bin/mkdocs build --strict --quiet
	@$(DOCS)/env/bin/python deploy/docs/outside.py $(DOCS)/site

$(DOCS)/env/.ready: deploy/requirements.docs.lock
	@test -n "$(PYTHON)" || { echo "the documents need Python 3.11 or newer; none was found on PATH"; exit 1; }
	@rm -rf $(DOCS)/env && $(PYTHON) -m venv $(DOCS)/env && \
		$(DOCS)/env/bin/python -m pip install -q --require-hashes -r deploy/requirements.docs.lock && touch $@

# Every command of README and docs, run as printed in an empty folder for each page; what it answers is compared.
test-docs: $(READY)
	@command -v curl >/dev/null || { \
		as=; test "$$(id -u)" = 0 || as=sudo; \
		$$as apt-get update -qq && $$as apt-get install -y -qq --no-install-recommends curl; \
	} || { echo "the documents are run with curl, and it could not be installed: apt-get install curl"; exit 1; }
	$(BIN)/python -m pytest -o faulthandler_timeout=0 tests/docs $(DOCS_TESTS)

# The page of the installed wheel in Debian's Chromium; BROWSER_TESTS="--minutes 30" leaves it open for half an hour,
# "--pictures docs/images" keeps the pictures of the documents (else they go where pytest's temporary files are).
test-browser: $(READY)
	@command -v chromium >/dev/null || { \
		as=; test "$$(id -u)" = 0 || as=sudo; \
		$$as apt-get update -qq && $$as apt-get install -y -qq --no-install-recommends chromium; \
	} || { echo "the browser tests need Chromium, and it could not be installed: apt-get install chromium"; exit 1; }
	@$(INSTALLED); $(BIN)/python -m pytest --maxfail=3 -o faulthandler_timeout=0 tests/browser \
		--evergreen $$there/env/bin/evergreen $(BROWSER_TESTS)

# Rules, dashboard (by Grafana's published schema) and alerts with Debian's Prometheus and Alertmanager, for three minutes under traffic; what Kubernetes would get.
OPERATIONS := build/operations
test-operations: $(READY) $(OPERATIONS)/env/.ready
	@for tool in promtool prometheus-alertmanager kubectl; do command -v $$tool >/dev/null || lacking=yes; done; \
	test -z "$$lacking" || { \
		as=; test "$$(id -u)" = 0 || as=sudo; \
		$$as apt-get update -qq && \
		$$as apt-get install -y -qq --no-install-recommends prometheus prometheus-alertmanager kubernetes-client; \
	} || { echo "these tests need Debian's prometheus, prometheus-alertmanager and kubernetes-client"; exit 1; }
	$(BIN)/python -m pytest tests/operations tests/deploy

$(OPERATIONS)/env/.ready: deploy/requirements.operations.lock
	@rm -rf $(OPERATIONS)/env && $(PYTHON) -m venv $(OPERATIONS)/env && \
		$(OPERATIONS)/env/bin/python -m pip install -q --require-hashes -r deploy/requirements.operations.lock && touch $@

# IMAGE, BASE, BUILD_BASE, SOURCE, BUILDER: see deploy/image.sh.
image:
	deploy/image.sh

# The image on a base made of Debian's packages, as no registry is needed for that; needs root, and skips with the reason.
test-image: $(READY)
	@for tool in podman debootstrap runc; do command -v $$tool >/dev/null || lacking="$$lacking $$tool"; done; \
		test -z "$$lacking" || test "$$(id -u)" != 0 || { apt-get update -qq && \
		apt-get install -y -qq --no-install-recommends $$lacking; } || echo "could not be installed:$$lacking"
	$(BIN)/python -m pytest -o faulthandler_timeout=0 tests/image $(IMAGE_TESTS)

# What deploy/ says to Kubernetes, against a policy checker; its schemas are checked by `make test`.
kubernetes: $(READY)
	@set -e; there=$$(mktemp -d); trap 'rm -rf $$there' EXIT; \
	$(BIN)/uv venv -q --python $(BIN)/python $$there/env; \
	$(BIN)/uv pip install -q --python $$there/env/bin/python checkov; \
	for overlay in sqlite-one postgres-s3; do \
		kubectl kustomize deploy/kubernetes/overlays/$$overlay >$$there/$$overlay.yaml; \
	done; cp deploy/kubernetes/drain-job.yaml $$there; \
	$$there/env/bin/checkov --config-file deploy/kubernetes/checkov.yaml -d $$there

# The lock carries versions and hashes, and no index address; deploy/ holds what it says without the tools, what the image
# has besides, and what it is built with. What the client needs is in them; it comes from this checkout itself.
COMPILE := $(BIN)/uv pip compile --universal --python-version 3.11 --no-emit-index-url --no-emit-find-links --no-header -q \
	--no-emit-package evergreen-client
lock: $(READY)
	$(COMPILE) pyproject.toml --group dev --generate-hashes -o requirements.lock
	$(COMPILE) pyproject.toml --generate-hashes -c requirements.lock -o deploy/requirements.lock
	$(COMPILE) pyproject.toml --no-annotate -c requirements.lock -o deploy/requirements.bento.txt
	echo 's3fs>=2024.10' | $(COMPILE) - --generate-hashes -c requirements.lock -o deploy/requirements.image.lock
	printf '%s\n' 'setuptools>=77' uv cyclonedx-bom | \
		$(COMPILE) - --generate-hashes -c requirements.lock -o deploy/requirements.build.lock

lock-operations:
	echo grafana-foundation-sdk | $(COMPILE) - --generate-hashes -o deploy/requirements.operations.lock

lock-docs:
	echo mkdocs-material | $(COMPILE) - --generate-hashes -o deploy/requirements.docs.lock

$(READY): requirements.lock pyproject.toml client/pyproject.toml training/trees.c training/records.c
	@test -n "$(PYTHON)" || { echo "evergreen needs Python 3.11 or newer; none was found on PATH"; exit 1; }
	@if command -v uv >/dev/null 2>&1; then \
		{ test -x $(BIN)/python || uv venv -q --python $(PYTHON) .venv; } && \
		uv pip sync -q --compile-bytecode --python $(BIN)/python --require-hashes requirements.lock && \
		uv pip install -q --python $(BIN)/python --no-deps --no-build-isolation -e . -e client ; \
	else \
		{ test -x $(BIN)/pip || $(PYTHON) -m venv .venv; } && \
		$(BIN)/python -m pip install -q --no-deps --require-hashes -r requirements.lock && \
		$(BIN)/python -m pip install -q --no-deps --no-build-isolation -e . -e client ; \
	fi
	@touch $(READY)

clean:
	rm -rf .venv build *.egg-info client/build client/*.egg-info training/_*.so .pytest_cache .mypy_cache .ruff_cache
