# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo dev test test-year unit test-spark lint lint-contracts terraform bench bench-engines lock image glue clean

demo: $(VENV)/.installed
	@$(BIN)/barecount demo

dev: $(VENV)/.installed
	@$(BIN)/barecount dev

# Files go in the order of their names: the long ones of the lifecycle begin early, short ones fill up at the end.
# Which go to one worker, for their fixtures' sake, tests/conftest.py says.
test: $(VENV)/.installed-test
	$(BIN)/ruff check barecount_assets resources tests
	$(BIN)/barecount check
	$(BIN)/python -m pytest -n 2 --dist loadscope --no-loadscope-reorder

# Years of a shop against a plain model of it, until the minutes are over; a failure prints its shortest sequence.
SEED ?= 1
MINUTES ?= 5
test-year: $(VENV)/.installed-test
	$(BIN)/python -m tests.year --seed $(SEED) --minutes $(MINUTES)

unit: $(VENV)/.installed-test
	$(BIN)/python -m pytest tests/unit

lint: $(VENV)/.installed-test
	$(BIN)/ruff check barecount_assets resources tests

# The conformance check of others: datacontract-cli in an environment of its own, its pins are not ours.
LINT_VENV := .venv-datacontract
lint-contracts: $(LINT_VENV)/.installed
	@for file in $$(find contracts/datasets tests/benchmarks/project/contracts/datasets -name '*.yaml' | sort); do \
		$(LINT_VENV)/bin/datacontract lint "$$file" > $(LINT_VENV)/lint.log 2>&1 && echo "conforms $$file" \
			|| { cat $(LINT_VENV)/lint.log; echo "does not conform: $$file"; exit 1; }; \
	done

$(LINT_VENV)/.installed: Makefile
	$(PYTHON) -m venv $(LINT_VENV)
	$(LINT_VENV)/bin/python -m pip install --quiet datacontract-cli==1.2.8
	@touch $@

# Plans every environment against an AWS that moto answers; PLUGINS is a folder with the provider, laid out as a mirror.
terraform: $(VENV)/.installed-test
	BARECOUNT_TERRAFORM_PLUGINS=$(abspath $(PLUGINS)) $(BIN)/python -m pytest tests/unit/deploy/test_terraform.py

# A master and two workers on this machine; needs Java 17.
test-spark: $(VENV)/.installed-spark
	$(BIN)/python -m pytest tests/lifecycle/test_spark.py

bench: $(VENV)/.installed-bench
	$(BIN)/python -m tests.benchmarks

# SCALE=10 needs 60 GB of disk and half an hour.
SCALE ?= 1
bench-engines: $(VENV)/.installed-bench $(VENV)/.installed-spark
	$(BIN)/python -m tests.benchmarks.bench_engines --scale $(SCALE)

# The image of deploy/Dockerfile, labelled with the digest of the code that can change a result.
IMAGE ?= barecount:local
image: $(VENV)/.installed
	docker build --file deploy/Dockerfile --tag $(IMAGE) \
		--build-arg REVISION=$$(git rev-parse HEAD) \
		--build-arg CODE_VERSION=$$($(BIN)/python -c 'from pathlib import Path; \
			from resources.runtime.settings import code_version; print(code_version(Path.cwd()))') .

# What a Glue job installs and unpacks: upload both to code/ in the bucket of runs.
glue: $(VENV)/.installed
	rm -rf build/glue && mkdir -p build/glue
	$(BIN)/python -m pip wheel --quiet --require-hashes --requirement requirements.lock --wheel-dir build/glue/wheels
	$(BIN)/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir build/glue/wheels .
	$(BIN)/python -m zipfile -c build/glue/packages.gluewheels.zip build/glue/wheels
	$(BIN)/python -m zipfile -c build/glue/project.zip contracts dbt_project deploy

# The lock files name versions and hashes, and no registry.
lock:
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-strip-extras --no-annotate --no-header \
		pyproject.toml -o requirements.lock
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-strip-extras --no-annotate --no-header \
		pyproject.toml --group test -c requirements.lock -o requirements-test.lock
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-strip-extras --no-annotate --no-header \
		pyproject.toml --group test --group benchmarks -c requirements.lock -o requirements-bench.lock
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-strip-extras --no-annotate --no-header \
		pyproject.toml --group test --group spark -c requirements-test.lock -o requirements-spark.lock

$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "BareCount needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.installed: $(VENV)/.created requirements.lock pyproject.toml
	$(BIN)/python -m pip install --quiet --require-hashes --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/.installed-test: $(VENV)/.installed requirements-test.lock
	$(BIN)/python -m pip install --quiet --require-hashes --requirement requirements-test.lock
	@touch $@

$(VENV)/.installed-spark: $(VENV)/.installed-test requirements-spark.lock
	$(BIN)/python -m pip install --quiet --require-hashes --requirement requirements-spark.lock
	@touch $@

$(VENV)/.installed-bench: $(VENV)/.installed-test requirements-bench.lock
	$(BIN)/python -m pip install --quiet --require-hashes --requirement requirements-bench.lock
	@touch $@

clean:
	-$(BIN)/barecount stop
	rm -rf .barecount $(VENV) $(LINT_VENV)
