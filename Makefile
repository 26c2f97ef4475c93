# Another Python or port: make run PYTHON=python3.13 PORT=8001
PYTHON := python3
PORT ?= 8000
# More for pytest: make test ARGS="-x -k rebuild"
ARGS :=

.DEFAULT_GOAL := help
.PHONY: help run serve test check coverage storm registration-day walk bench pictures clean python servers venv

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*##  *\(.*\)/make \1	\2/p' Makefile

# MySQL's client has to be compiled; a trial on SQLite must do without a compiler.
run_needs := $(if $(filter mysql%,$(value DATABASE_URL)),requirements,requirements-base)

run: .venv/.$(run_needs)  ## the site with demo data on http://127.0.0.1:8000/
	@export DEBUG="$${DEBUG-1}" \
	&& .venv/bin/python manage.py migrate --verbosity 0 \
	&& .venv/bin/python manage.py load_demo \
	&& exec .venv/bin/python manage.py runserver 127.0.0.1:$(PORT)

serve: .venv/.requirements  ## the site in production, by gunicorn: DATABASE_URL=… REDIS_URL=… make serve
	.venv/bin/python manage.py migrate --verbosity 0
	@PORT=$(PORT) exec .venv/bin/gunicorn

# What the caller works with, a database that is in use for one, must not get into the tests.
clean_env := env -u DATABASE_URL -u REDIS_URL -u SECRET_KEY -u DEBUG -u ALLOWED_HOSTS \
	-u DJANGO_SETTINGS_MODULE -u PYTHONPATH -u PYTEST_ADDOPTS -u MAKEFLAGS

test: .venv/.requirements-test  ## all tests: on SQLite, then on a private MariaDB and Redis
	$(clean_env) .venv/bin/python -m pytest $(ARGS)
	$(clean_env) .venv/bin/python -m tests.support.servers .venv/bin/python -m pytest $(ARGS)

python_files := courses enrollments project tests benchmarks manage.py gunicorn.conf.py
# In memory: a look at the project makes no database.
check_env := $(clean_env) DATABASE_URL=sqlite://:memory:

check: .venv/.requirements-dev  ## style, types, migrations, deployment: before every commit
	.venv/bin/ruff check $(python_files)
	.venv/bin/ruff format --check $(python_files)
	$(check_env) .venv/bin/mypy
	$(check_env) .venv/bin/python manage.py makemigrations --check --dry-run
	$(check_env) .venv/bin/python manage.py check --deploy --fail-level WARNING

# What a count and its history depend on: each branch is taken by a test.
core := enrollments/services.py,enrollments/history.py,enrollments/bulk.py,courses/counts/drift.py,courses/fields.py,project/cache.py
coverage_run := .venv/bin/python -m coverage run -m pytest $(ARGS)

coverage: .venv/.requirements-dev  ## branches that the tests take, both runs together
	rm -rf .cache/coverage && mkdir -p .cache/coverage
	$(clean_env) $(coverage_run)
	$(clean_env) .venv/bin/python -m tests.support.servers $(coverage_run)
	.venv/bin/python -m coverage combine --quiet
	.venv/bin/python -m coverage report
	.venv/bin/python -m coverage report --include=$(core) --fail-under=100

# More for the storm: make storm STORM="--seconds 600 --damage", or --kill 20, or --cluster
STORM := --seconds 180

storm: .venv/.requirements-test  ## all services at once for three minutes, on a private MariaDB
	$(clean_env) .venv/bin/python -m tests.system.stress $(STORM)

# make registration-day DAY="--students 5000 --seats 300", or --stop-redis
DAY := --students 2000 --seats 500

registration-day: .venv/.requirements-test  ## 2,000 students press at once for 500 seats, over HTTP
	$(clean_env) .venv/bin/python -m tests.system.registration_day $(DAY)

# Another release: make walk WALK="--suite trixie"
WALK :=

walk: .venv/.requirements-test  ## the commands of docs/deployment.md on an empty Debian; needs root
	$(clean_env) .venv/bin/python -m tests.system.deployment $(WALK)

pictures: .venv/.requirements-test  ## the pictures of the README, by Chromium
	$(clean_env) .venv/bin/python -m tests.system.screenshots docs/screenshots

# More for the benchmarks: make bench BENCH="--size large --write", or --help
BENCH :=

bench: .venv/.requirements-bench  ## our services against the bare driver and peers' ways
	$(clean_env) .venv/bin/python -m benchmarks $(BENCH)

clean:  ## removes what was installed, keeps the database
	rm -rf .venv .cache .hypothesis .pytest_cache .ruff_cache

python:
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or later is needed, $(PYTHON) is %d.%d" % sys.version_info[:2])'

servers: python
	@$(PYTHON) -m tests.support.servers --install

# Debian packs ensurepip apart.
apt_venv := { test "$$(id -u)" = 0 && apt-get -qq update && apt-get -qq install python3-venv; } >/dev/null 2>&1

venv: python
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || $(apt_venv) \
	|| { echo "Python's venv is missing: please install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv --clear .venv

.venv/.requirements-base: requirements-base.txt
.venv/.requirements: requirements.txt requirements-base.txt
.venv/.requirements-test: requirements-test.txt requirements.txt requirements-base.txt | servers
.venv/.requirements-dev: requirements-dev.txt requirements-test.txt requirements.txt requirements-base.txt | servers
.venv/.requirements-bench: requirements-bench.txt requirements.txt requirements-base.txt | servers
# Not there, cut short, or made by a Python that is gone.
ifneq ($(shell { .venv/bin/python -c 'import pip' || echo no; } 2>&1),)
.venv/.requirements-base .venv/.requirements .venv/.requirements-test .venv/.requirements-dev .venv/.requirements-bench: venv
endif
.venv/.%:
	.venv/bin/python -m pip install --quiet --disable-pip-version-check -r $*.txt
	@touch $@
