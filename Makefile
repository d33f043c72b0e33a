# Everything a contributor runs. `make` alone explains.

python := .venv/bin/python
installed := .venv/.installed
demonstrable := .venv/.demonstrable

MINUTES := 20

.DEFAULT_GOAL := help
.PHONY: help demo setup rabbitmq test bench chaos soak twins check format clean

help: ## Show this
	@echo "To see it work: make demo. First time: make setup rabbitmq test. Before pushing: make check test."
	@sed -n 's/^\([a-z]*\):[^#]*## /  \1\t/p' $(MAKEFILE_LIST) | expand -t 12

# What it needs is installed in a fraction of the time that all takes; who has all has that too.
demo: $(if $(wildcard $(installed)),$(installed),$(demonstrable)) ## See the main job work, on an embedded broker: three mails and what becomes of them
	@$(python) -m services.email.demo

setup: $(installed) ## Create .venv and install amqpjobs in it, editable, with everything for its development

# Stamps, so that this is done again only when pyproject.toml changes. The demo leaves its packages uncompiled, and
# where Python is told to write no bytecode each of the hundreds of processes in the tests would compile them again.
$(installed): pyproject.toml
	$(make_venv)
	$(python) -m pip install --quiet --editable '.[all,test,check]'
	@$(python) -m compileall -qq -j 0 .venv/lib amqpjobs || true  # some packages hold files that are no Python 3
	@touch $@

$(demonstrable): pyproject.toml
	$(make_venv)
	$(python) -m pip install --quiet --no-compile --editable '.[demo]'
	@touch $@

define make_venv
@python3 -c 'import sys; sys.exit(sys.version_info < (3, 11) and "amqpjobs needs Python 3.11 or newer; python3 is " + sys.version.split()[0])'
@test -x $(python) || python3 -m venv .venv
endef

rabbitmq: ## Install RabbitMQ, librabbitmq's tools and promtool for the tests, if need be (Debian and Ubuntu: as root)
	@tests/support/install_rabbitmq.sh

test: setup rabbitmq ## Run all tests, on private RabbitMQ nodes; one file: .venv/bin/pytest tests/scenarios/test_node.py
	$(python) -m pytest -m "not slow" -n 2 --dist loadfile

bench: setup rabbitmq ## amqpjobs beside its peers; what many and large jobs cost; the embedded broker; 10,000 schedules (two hours)
	$(python) -m benchmarks
	$(python) -m benchmarks.growth
	$(python) -m benchmarks.embedded_broker
	$(python) -m benchmarks.beats

chaos: setup rabbitmq ## The stories of failure at full length, on the RabbitMQ that comes first on PATH
	$(python) -m pytest --full -v -o faulthandler_timeout=1800 tests/contract/test_delays.py tests/scenarios

soak: setup rabbitmq ## A worker and producers for 20 minutes with a reconnect every 20 s, and what piles up; make soak MINUTES=60
	$(python) -m pytest -s --soak $(MINUTES) tests/scenarios/test_soak.py

twins: setup rabbitmq ## The embedded broker against the RabbitMQ that comes first on PATH, at length, new every time
	$(python) -m pytest --full -o faulthandler_timeout=1800 tests/scenarios/test_embedded_equals_rabbitmq.py tests/scenarios/test_devbroker_fuzz.py

check: setup ## Formatting, lint and types, as CI sees them
	$(python) -m ruff format --check
	$(python) -m ruff check
	$(python) -m mypy
	$(python) -m pyright

format: setup ## Format the code and fix what can be fixed
	$(python) -m ruff check --fix
	$(python) -m ruff format

clean: ## Remove what was generated, .venv included
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
