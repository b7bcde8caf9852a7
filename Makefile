# make demo   run the whole pipeline on a small generated dataset and write demo_output/report.html
# make test   run the test suite (make test-slow: including the long end-to-end runs)
# make coverage   run the test suite and report branch coverage
# make lint   run ruff and mypy
# make docs   execute the tutorials and build the documentation in docs/_build/html
# make screenshots DATA=...   take the pictures of the review page in the documentation, see docs/screenshots.py
# make gpu-check   run deferral beside stock on a GPU and write measurements/results/gpu_check.json
# Each target first installs its requirements in .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test test-slow coverage lint docs screenshots gpu-check clean

demo: $(READY)
	$(BIN)/nnUNetv2_deferral_demo -o demo_output --overwrite

test: $(READY)
	$(BIN)/python -m pytest

test-slow: $(READY)
	$(BIN)/python -m pytest -m "slow or not slow"

coverage: $(READY)
	$(BIN)/python -m pytest --cov --cov-report=term

# mypy does not support folders that an editable install maps into the package, so it checks an installed copy.
lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	rm -rf build/typed && $(BIN)/pip install -q --no-deps --target build/typed .
	cd build/typed && ../../$(BIN)/mypy --config-file ../../pyproject.toml -p nnunetv2_deferral

docs: $(READY)
	$(BIN)/pip install -q -e ".[docs]"
	$(BIN)/python docs/check.py
	$(BIN)/sphinx-build -W -q docs docs/_build/html

screenshots: $(READY)
	$(BIN)/python docs/screenshots.py $(DATA)

gpu-check: $(READY)
	$(BIN)/python measurements/gpu_check.py

$(READY): pyproject.toml setup.cfg
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --upgrade pip
	$(BIN)/pip install -q -e ".[dev]"
	touch $@

clean:
	rm -rf build dist *.egg-info demo_output docs/_build
