# `make demo` and `make test` set up .venv by themselves.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# On a busy machine, threads that spin while they wait make a training step ten times slower.
export OMP_WAIT_POLICY := passive
# Each start of Python would compile the package again.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: setup demo test test-fast test-oldest test-matrix lint bench bench-deployment docs notebooks
setup: $(READY)

$(READY): requirements.txt setup.py pyproject.toml se_detection/install_detectron2.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c requirements.txt -e '.[dev]'
	$(BIN)/python se_detection/install_detectron2.py
	touch $@

# A plain and an SE detector from scratch on the toy set, and their comparison: minutes on two CPU cores.
demo: $(READY)
	@$(BIN)/python examples/demo.py

# In three processes of one thread each: some tests wait.
test test-fast: export OMP_NUM_THREADS := 1
test: $(READY)
	$(BIN)/python -m pytest -n 3 --dist worksteal

# Without the tests marked as slow: two minutes.
test-fast: $(READY)
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow"

# Networks, configs, weights, exports and a run on an old torch, in its own environment. versions.py allows torch 2.6:
# docs/COMPATIBILITY.md.
OLDEST := .venv-oldest
test-oldest: export OMP_NUM_THREADS := 1
test-oldest: $(OLDEST)/.ready
	$(OLDEST)/bin/python -m pytest -n 2 --dist worksteal tests/export \
	    tests/modeling --ignore=tests/modeling/test_configurations.py \
	    --ignore=tests/modeling/test_timm_backbone.py --ignore=tests/modeling/test_insert_se.py \
	    tests/checkpoint/test_read_weights.py tests/checkpoint/test_checkpointer.py tests/checkpoint/test_convert.py \
	    tests/config/test_se_config.py tests/config/test_read_config.py tests/inference/test_detector.py tests/test_startup.py

$(OLDEST)/.ready: requirements.txt setup.py pyproject.toml se_detection/install_detectron2.py
	$(PYTHON) -m venv $(OLDEST)
	sed 's/^torch==.*/torch==2.8.0/; s/^torchvision==.*/torchvision==0.23.0/' requirements.txt > $(OLDEST)/constraints.txt
	$(OLDEST)/bin/python -m pip install --quiet --disable-pip-version-check -c $(OLDEST)/constraints.txt \
	    -e '.[export,openvino]' hypothesis pytest pytest-xdist pretrainedmodels six
	$(OLDEST)/bin/python se_detection/install_detectron2.py
	touch $@

# The fast tests with the oldest and the newest Python and torch, each in an environment that is removed afterwards.
test-matrix: export OMP_NUM_THREADS := 1
test-matrix:
	$(PYTHON) dev/version_matrix.py

# Time and memory next to detectron2's plain ResNet: less than a minute on two CPU cores.
bench: $(READY)
	$(BIN)/python tools/benchmark.py --quick

# The table of docs/DEPLOYING.md for the detector of RUN: every runtime and precision, with AP. Stopped, it resumes after
# the last complete file; two idle cores need about 15 minutes.
DEPLOYMENT := output/deployment
DETECTOR := $(BIN)/python tools/benchmark.py --part detector --mode inference --rounds 9
EXPORTS := onnxruntime onnxruntime-fused onnxruntime-int8 openvino openvino-bf16 openvino-int8
bench-deployment: $(READY)
	mkdir -p output
	test -f $(DEPLOYMENT)-R50.json || $(DETECTOR) --json $(DEPLOYMENT)-R50.json --size 480x640 --arms fused $(EXPORTS)
	test -f $(DEPLOYMENT)-run.json || $(DETECTOR) --json $(DEPLOYMENT)-run.json --run $(RUN) --evaluate --arms fused $(EXPORTS)
	$(BIN)/python -m projects.benchmark.deployment_table $(DEPLOYMENT)-R50.json $(DEPLOYMENT)-run.json > $(DEPLOYMENT).md

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python dev/check_words.py

# The documentation site in build/site, which is read with `python -m http.server -d build/site`. It needs no torch.
DOCS := .venv-docs
docs: $(DOCS)/.ready
	$(DOCS)/bin/python dev/site_pages.py
	$(DOCS)/bin/zensical build --strict --clean

$(DOCS)/.ready: requirements.txt pyproject.toml
	$(PYTHON) -m venv $(DOCS)
	$(DOCS)/bin/python -m pip install --quiet --disable-pip-version-check -c requirements.txt \
	    $$($(PYTHON) -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["docs"])')
	touch $@

# Runs every notebook and writes its outputs: minutes on two CPU cores.
notebooks: export PATH := $(abspath $(BIN)):$(PATH)
# torch and detectron2 warn of themselves.
notebooks: export PYTHONWARNINGS := ignore
notebooks: export TORCH_LOGS := -torch.fx._symbolic_trace
notebooks: export TQDM_DISABLE := 1
notebooks: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c requirements.txt -e '.[docs]'
	$(BIN)/jupyter nbconvert --log-level WARN --execute --inplace examples/*.ipynb
	$(BIN)/jupyter nbconvert --log-level WARN --inplace --coalesce-streams examples/*.ipynb
