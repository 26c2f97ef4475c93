# Use another Python or port: make run PYTHON=python3.13 PORT=8001
PYTHON := python3
PORT ?= 8000
# Options of the command that a target runs: make test ARGS="-x -k rebuild", make stress ARGS=--help
ARGS :=

.DEFAULT_GOAL := help
.PHONY: help run serve test test-mysql check docs coverage stress registration-day test-deployment \
	bench screenshots lock clean python servers venv production-settings

help:  ## List the targets
	@awk -F ':.*##  *' '/^[a-z-]+:.*##/ { printf "make %-17s %s\n", $$1, $$2 }' Makefile

# mysqlclient must be compiled. The trial on SQLite needs wheels only.
run_requirements := $(if $(filter mysql%,$(value DATABASE_URL)),requirements,requirements-base)

run: .venv/.$(run_requirements)  ## Serve the site with demo data on http://127.0.0.1:8000/
	@export DEBUG="$${DEBUG-1}" \
	&& .venv/bin/python manage.py migrate --verbosity 0 \
	&& .venv/bin/python manage.py load_demo \
	&& exec .venv/bin/python manage.py runserver 127.0.0.1:$(PORT)

serve: production-settings .venv/.requirements  ## Serve the site with gunicorn, as in production
	.venv/bin/python manage.py migrate --verbosity 0
	@PORT=$(PORT) exec .venv/bin/gunicorn

missing_settings = $(strip $(foreach name,DATABASE_URL SECRET_KEY,$(if $(value $(name)),,$(name))))
production-settings:
	@$(if $(missing_settings),$(error Set these variables: $(missing_settings). Example: DATABASE_URL=mysql://user:password@host:3306/name SECRET_KEY=… make serve))

# Tests and checks must not use the caller's database, cache or settings.
clean_env := env -u DATABASE_URL -u REDIS_URL -u DEBUG -u ALLOWED_HOSTS -u DJANGO_SETTINGS_MODULE \
	-u PYTHONPATH -u PYTEST_ADDOPTS -u MAKEFLAGS SECRET_KEY=for-tests-and-checks-only-0123456789-abcdefghijklmnop

# Each process has a database server of its own. Tests of one file share a process. The order of
# the files is kept, because the browser tests must come last.
processes := --numprocesses 2 --dist loadfile --no-loadscope-reorder

test: .venv/.requirements-test  ## Run all tests on SQLite, then on a private MariaDB and Redis
	$(clean_env) .venv/bin/python -m pytest $(processes) $(ARGS)
	$(clean_env) .venv/bin/python -m tests.support.servers --sets 2 .venv/bin/python -m pytest $(processes) $(ARGS)

mysql_tests := tests/enrollments/services tests/enrollments/test_adopt_sql.py \
	tests/enrollments/test_concurrency.py tests/enrollments/test_history.py \
	tests/enrollments/test_isolation.py tests/enrollments/test_models.py \
	tests/enrollments/test_rebuild_counts_sql.py tests/enrollments/test_statements.py \
	tests/courses/counts/test_drift.py tests/courses/test_fields.py tests/courses/test_managers.py \
	tests/courses/test_transactions.py tests/enrollments/test_user_models.py
# These use a variable and a table column that only MariaDB has.
mariadb_tests := snapshot_isolation or migrate_waits_longer

test-mysql: .venv/.requirements-test  ## Run the tests of services, rebuild and SQL scripts on MySQL
	$(clean_env) .venv/bin/python -m tests.support.mysql .venv/bin/python -m pytest -k "not ($(mariadb_tests))" \
		$(mysql_tests) $(ARGS)

check_env := $(clean_env) DATABASE_URL=sqlite://:memory:

check: .venv/.requirements-dev  ## Run all static checks and build the docs. Run this before every commit
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/codespell
	.venv/bin/lint-imports --no-logo --cache-dir .cache/import_linter
	$(check_env) .venv/bin/mypy
	$(check_env) .venv/bin/python manage.py makemigrations --check --dry-run
	$(check_env) .venv/bin/python manage.py check --deploy --fail-level WARNING
	$(build_docs)

build_docs := .venv/bin/sphinx-build --quiet --fresh-env -W --keep-going -n -b html docs .cache/docs

docs: .venv/.requirements-docs  ## Build the documentation in .cache/docs
	$(build_docs)

# Every branch of the modules that keep counts and history right must be tested.
core := enrollments/services.py,enrollments/transitions.py,enrollments/writing.py,enrollments/rows.py,enrollments/statements.py,enrollments/history.py,courses/counts/drift.py,courses/fields.py,project/cache.py
coverage_run := .venv/bin/python -m coverage run -m pytest $(ARGS)

coverage: .venv/.requirements-test  ## Measure branch coverage of the tests on both databases
	rm -rf .cache/coverage && mkdir -p .cache/coverage
	$(clean_env) $(coverage_run)
	$(clean_env) .venv/bin/python -m tests.support.servers $(coverage_run)
	.venv/bin/python -m coverage combine --quiet
	.venv/bin/python -m coverage report
	.venv/bin/python -m coverage report --include=$(core) --fail-under=100

stress: .venv/.requirements-test  ## Run all services concurrently for three minutes on a private MariaDB
	$(clean_env) .venv/bin/python -m tests.system.stress $(ARGS)

registration-day: .venv/.requirements-test  ## Let 2,000 students enroll in 500 seats at once, over HTTP
	$(clean_env) .venv/bin/python -m tests.system.registration_day $(ARGS)

test-deployment: .venv/.requirements-test  ## Follow the deployment guide on an empty Debian. Needs root
	$(clean_env) .venv/bin/python -m tests.system.deployment $(ARGS)

screenshots: .venv/.requirements-test  ## Take the screenshots of the README with Chromium
	$(clean_env) .venv/bin/python -m tests.system.screenshots $(ARGS)

bench: .venv/.requirements-bench  ## Compare the services with the bare driver and with other packages
	$(clean_env) .venv/bin/python -m benchmarks $(ARGS)

# In an environment of its own: nothing else needs uv.
lock: python  ## Pin all packages of production in requirements.lock. ARGS=--upgrade takes new versions
	$(PYTHON) -m venv .cache/uv && .cache/uv/bin/pip install --quiet --disable-pip-version-check uv
	UV_CUSTOM_COMPILE_COMMAND="make lock" .cache/uv/bin/uv pip compile --quiet --universal \
		--python-version 3.11 --generate-hashes --output-file requirements.lock $(ARGS) requirements.txt

clean:  ## Remove installed packages and caches. Keeps the database
	rm -rf .venv .cache .hypothesis .pytest_cache .ruff_cache

python:
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or later is required. $(PYTHON) is %d.%d." % sys.version_info[:2])'

servers: python
	@$(PYTHON) -m tests.support.servers --install

# Debian has ensurepip in a package of its own.
install_venv := { test "$$(id -u)" = 0 && apt-get -qq update && apt-get -qq install python3-venv; } >/dev/null 2>&1

venv: python
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || $(install_venv) \
	|| { echo "Python's venv module is missing. Install the package python3-venv." >&2; exit 1; }
	$(PYTHON) -m venv --clear .venv

.venv/.requirements-base: requirements-base.txt
.venv/.requirements: requirements.txt requirements-base.txt
.venv/.requirements-docs: requirements-docs.txt
.venv/.requirements-dev: requirements-dev.txt requirements-docs.txt requirements-base.txt
.venv/.requirements-test: requirements-test.txt requirements.txt requirements-base.txt | servers
.venv/.requirements-bench: requirements-bench.txt requirements.txt requirements-base.txt | servers
# Create the environment again if it is missing, incomplete, or made by a Python that was removed.
ifneq ($(shell { .venv/bin/python -c 'import pip' || echo no; } 2>&1),)
.venv/.requirements-base .venv/.requirements .venv/.requirements-docs .venv/.requirements-dev .venv/.requirements-test .venv/.requirements-bench: venv
endif
.venv/.%:
	.venv/bin/python -m pip install --quiet --disable-pip-version-check -r $*.txt
	@touch $@
