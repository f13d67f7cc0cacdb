# Two commands serve a fresh machine: `make demo` and `make test`. Each sets up what it needs.
VENV := .venv
PY := $(VENV)/bin/python
SETUP := build/.setup
# Most tests wait for other processes: three at a time keep two cores busy. The tests of a file stay together.
PYTEST := $(PY) -m pytest -n 3 --dist loadfile
export FLWR_TELEMETRY_ENABLED = 0
export FLWR_DISABLE_UPDATE_CHECK = 1

.PHONY: demo test system package image check bench docs setup lint clean
.DEFAULT_GOAL := demo

demo: setup
	$(PY) -m tests.demo $(ARGS)

test: setup lint
	$(PYTEST) --ignore tests/guest

# Whole machines, booted: package and image installed, enrolled, updated, robbed of their power (docs/developer.md). Needs
# root to build them, and more than an hour; TESTS names some of them.
system: setup
	$(PY) -m tests.guest
	$(PY) -m pytest -s --durations 12 $(or $(TESTS),tests/guest)

# The Debian package of VERSION with its payload, into build/package; MAKER names who signs, else keys for tests do.
VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
package: setup
	packaging/package.sh build/package $(VERSION) $(MAKER)

# The appliance's disk image around that package; needs root. PRESET names a directory of files to lay over its system,
# SECURE_BOOT one of keys that sign it (packaging/image/secure-boot-keys.sh makes them).
ifneq ($(SECURE_BOOT),)
ifeq ($(MAKER),)
$(error SECURE_BOOT needs MAKER: without it the image would trust keys for tests, which lie open)
endif
endif
image: package
	packaging/image/build.sh build/package/secur-e-health_$(VERSION)_amd64.deb build/image/appliance.raw \
		"$(PRESET)" $(SECURE_BOOT)

# The quick part: lint, types, floors, unit tests and attacks, within two minutes.
check: setup lint
	$(PYTEST) -m "not slow" tests/unit tests/attacks tests/contract

lint: setup
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/lint-imports
	$(VENV)/bin/mypy

bench: setup
	$(PY) -m tests.bench $(ROWS)

# Pages and pictures of docs/ that are made from the code.
docs: setup
	$(PY) -m tests.handbook
	$(PY) -m tests.handbook.console

setup: $(SETUP)

$(SETUP): pyproject.toml constraints.txt packaging/debian-packages.txt packaging/setup.sh
	packaging/setup.sh $(VENV)
	mkdir -p build && touch $@

clean:
	rm -rf build $(VENV)
