# `demo` and `test` do everything from a fresh clone, `check` is the fast lane; all create and reuse .venv.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed

.PHONY: demo test check lint docs clean

# torch comes first and pinned: whatever is installed after it finds it satisfied.
$(STAMP): pyproject.toml constraints.txt
	$(PY) -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	$(PY) -m pip install -q -c constraints.txt torch
	$(PY) -m pip install -q -c constraints.txt -e ".[dev]"
	touch $(STAMP)

demo: $(STAMP)
	$(VENV)/bin/exltune demo --out demo

lint: $(STAMP)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

# Under two minutes on two cores: what one runs before every commit.
check: lint
	$(VENV)/bin/pytest -n 2 --dist loadfile -m "not slow" tests/unit

test: lint
	$(VENV)/bin/pytest -n 2 --dist loadfile

# Every warning ends it; the pages are in site/index.html and need no network.
docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict --clean

clean:
	rm -rf $(VENV) demo site
