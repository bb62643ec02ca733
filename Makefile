# make demo | test | test-all | fuzz | lint | docs: each makes the environment .venv where it is missing, and can be
# run again. PYTHON=python3.12 chooses the interpreter of a new environment; ARGS=... goes to the demo
# or to pytest.

PYTHON ?= python3
WORKERS ?= 2
BIN := .venv/bin

# The tests start many processes: modules are compiled once for all of them.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test test-all fuzz lint types docs clean
.NOTPARALLEL:

demo: .venv/.installed-ms
	$(BIN)/python examples/segment_ms.py $(ARGS)

# Not `python -m pytest`: that would put this folder on the path, and kernels/ with it.
test: .venv/.installed-dev
	$(BIN)/pytest -n $(WORKERS) --dist worksteal $(ARGS)
	TRITON_INTERPRET=1 $(BIN)/pytest -n $(WORKERS) --dist worksteal \
		-m "interpreter and not exhaustive" tests/kernels

# Everything: long runs of the experiment and of several processes, and all 48 storages and 24
# rotations through files, of which `test` takes a handful.
test-all: .venv/.installed-dev
	$(BIN)/pytest -n $(WORKERS) --dist worksteal --hypothesis-profile all \
		-m "not interpreter" $(ARGS)
	TRITON_INTERPRET=1 $(BIN)/pytest -n $(WORKERS) --dist worksteal --hypothesis-profile all \
		-m interpreter tests/kernels

# Thousands of damaged files, other ones each time; a few run with the tests.
fuzz: .venv/.installed-dev
	$(BIN)/pytest --hypothesis-profile fuzz --hypothesis-show-statistics $(ARGS) tests/trust/test_fuzz.py

lint: types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# kernels/ is checked as tripq.kernels, the name under which it is installed.
types: .venv/.installed-dev
	mkdir -p build/typed/tripq
	ln -sfn $(CURDIR)/tripq/* $(CURDIR)/kernels build/typed/tripq/
	cd build/typed && $(CURDIR)/$(BIN)/mypy --config-file $(CURDIR)/pyproject.toml -p tripq

# The site, in site/index.html: it opens from a disk, without a network.
docs: .venv/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

.venv/.installed-%: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing tripq[$*] into .venv (the first time takes a few minutes)"
	$(BIN)/python -m pip install -qq --disable-pip-version-check \
		--constraint constraints.txt --editable '.[$*]'
	@touch $@

$(BIN)/python:
	$(PYTHON) -m venv .venv

# Builds and caches; the environment stays (rm -r .venv removes it), and so do the results in runs/.
clean:
	rm -rf build dist site *.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -path ./.venv -prune -o -name __pycache__ -prune -exec rm -rf {} +
