# Python 3.10 or newer and a network that reaches the package index: nothing else is needed.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo check test docs clean

demo: .venv/installed
	$(BIN)/tumorseg demo --out demo

# Two at a time, each with one thread
check test: export OMP_NUM_THREADS = 1

# In less than a minute: lint, notebooks in step with their modules, the plan of the house
check: .venv/installed
	$(BIN)/ruff check --quiet
	$(BIN)/python tests/check_notebooks.py
	$(BIN)/python -m pytest -q tests/test_repository.py tests/test_architecture.py

# What continuous integration runs. It ends with pytest's closing line.
test: check
	cd nbs && ../$(BIN)/nbdev-test --n-workers 2 --timing --do-print
	$(BIN)/python -m pytest -q -n 2 --dist loadfile --durations=10

# The site, in _site/; a link that leads nowhere, or a page that would load something from elsewhere, fails
docs: .venv/installed
	$(BIN)/python docs/book.py --check
	$(BIN)/python docs/build.py

# Installed once: a second make finds the stamp and goes on.
.venv/installed: settings.ini setup.py pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("tumorseg needs Python 3.10 or newer, and this is " + sys.version.split()[0] + ": make PYTHON=python3.11 ...") if sys.version_info < (3, 10) else None'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q -e '.[dev]'
	touch $@

clean:
	rm -rf .venv build *.egg-info demo _site
