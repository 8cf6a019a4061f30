# `make help` lists the commands. They run in .venv, which is set up once, and again when setup.py or requirements.lock
# changes. Requires Python 3.11+, pip and make.

PYTHON ?= python3
VENV ?= .venv
ARGS ?=
DEMO := runs/demo

# With an NVIDIA GPU, install TensorFlow with its CUDA libraries. Otherwise install the smaller CPU build if it exists.
ifneq ($(shell command -v nvidia-smi 2>/dev/null),)
EXTRAS ?= dev,gpu
else
EXTRAS ?= dev
ifeq ($(shell uname -sm),Linux x86_64)
export DEEPLAB_KERAS_TENSORFLOW ?= tensorflow-cpu
endif
endif

RUN := $(VENV)/bin/python
INSTALL := $(RUN) -m pip install --quiet --disable-pip-version-check -c requirements.lock
READY := $(VENV)/.ready
TORCH := $(VENV)/.torch
JAX := $(VENV)/.jax
SITE := $(VENV)/.site
# The environment with the lowest versions that setup.py allows, and the tests that run there.
LOWEST := .venv-lowest
LOWEST_TESTS := $(addprefix tests/test_,$(addsuffix .py,lowest models segmentor layers losses metrics optimizers \
    quantization golden_official golden_sssegmentation data_pipeline data_tfds data_strong_transforms data_readers \
    checkpoints_folder checkpoints_damage convert_pth export inference prediction training visualization zoo_loading))
# Tests of the quick lane that do not need TensorFlow, by name.
NEUTRAL := value_and_gradient or official or replica_sums or sgd or rules or rebuild or formulas or under_fit or distillation or no_gradient

.PHONY: help setup demo test slow torch jax lowest gpu site lint types ci clean

help: ## list the commands
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 10

setup: $(READY) ## set up .venv; the other commands do this automatically

demo: $(READY) ## train, evaluate, draw and export on the built-in data, and check the export
	$(RUN) scripts/train.py --flagfile=configs/synthetic/demo.flags --train_logdir=$(DEMO)
	$(RUN) scripts/eval.py --flagfile=configs/synthetic/demo.flags --checkpoint_dir=$(DEMO)
	$(RUN) scripts/vis.py --flagfile=configs/synthetic/demo.flags --checkpoint_dir=$(DEMO) --vis_logdir=$(DEMO)/vis
	$(RUN) scripts/export_model.py --flagfile=configs/synthetic/demo.flags --checkpoint_dir=$(DEMO) \
	    --export_path=$(DEMO)/export --formats=tflite --input_size=160,160 --overwrite
	@echo "pictures: $(CURDIR)/$(DEMO)/vis"

test: $(READY) ## run the quick tests; ARGS='-k flags' selects some
	$(RUN) -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

# Without ARGS, each file runs in a process of its own, because a process never gives back the memory of its graphs.
slow: $(READY) ## run the tests that take minutes each
ifeq ($(ARGS),)
	$(RUN) -m pytest -m slow --collect-only -q | sed -n 's/::.*//p' | uniq -c | sort -rn | awk '{print $$2}' \
	| xargs -P 2 -n 1 $(RUN) -m pytest -m slow
else
	$(RUN) -m pytest -m slow -n 2 --dist loadfile $(ARGS)
endif

torch: $(TORCH) ## run the tests that compare with PyTorch and SSSegmentation; installs both
	$(RUN) -m pytest -m torch $(ARGS)

jax: $(JAX) ## test models, training and evaluation on Keras' JAX backend; installs JAX
	KERAS_BACKEND=jax JAX_PLATFORMS=cpu $(RUN) -m pytest -m jax $(ARGS)
	KERAS_BACKEND=jax JAX_PLATFORMS=cpu $(RUN) -m pytest -k "$(NEUTRAL)" tests/test_losses.py tests/test_optimizers.py

lowest: $(LOWEST)/.ready ## test the oldest supported versions of all dependencies, in a separate environment
	$(LOWEST)/bin/python -m pytest -m 'not slow and not torch and not jax' -n 2 --dist loadfile $(LOWEST_TESTS) $(ARGS)

gpu: ## measure this machine's GPU with the JAX and PyTorch of PYTHON; see docs/benchmarks.md
	$(PYTHON) scripts/benchmark.py --what=gpu --json=gpu.json --page=gpu.md $(ARGS)

site: $(SITE) ## build the documentation as a site in build/site; installs mkdocs
	NO_MKDOCS_2_WARNING=1 TF_CPP_MIN_LOG_LEVEL=3 $(RUN) -m mkdocs build --quiet

lint: $(READY) ## check the style and the formatting (ruff)
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

types: $(READY) ## check the type hints (mypy)
	$(RUN) -m mypy

ci: ## run everything that continuous integration runs
	.ci/run

clean: ## remove the environments, runs/demo and caches
	rm -rf $(VENV) $(LOWEST) $(DEMO) build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis

$(READY): setup.py requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo \
	    "error: $(PYTHON) is not Python 3.11 or newer; select another interpreter: make PYTHON=python3.12" >&2; exit 1; }
	@echo "Setting up $(VENV) (only once): takes one to three minutes and 2 GB of disk space"
	@$(RUN) -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	@$(INSTALL) -e '.[$(EXTRAS)]'
	@touch $@

$(TORCH): $(READY)
	@$(INSTALL) -e '.[$(EXTRAS)]' 'torch>=2.13,<3' setuptools opencv-python-headless
	@$(INSTALL) --no-deps --no-build-isolation sssegmentation==1.7.0
	@touch $@

$(JAX): $(READY)
	@$(INSTALL) 'jax[cpu]>=0.10'
	@touch $@

# pip has no option for the lowest versions; uv has.
$(LOWEST)/.ready: setup.py
	@$(PYTHON) -m venv --clear $(LOWEST)
	@$(LOWEST)/bin/python -m pip install --quiet --disable-pip-version-check uv
	@$(LOWEST)/bin/uv pip install --quiet --python $(LOWEST) --resolution lowest-direct -e '.[test,onnx,serve,video]'
	@touch $@

$(SITE): $(READY)
	@$(INSTALL) -e '.[$(EXTRAS),docs]'
	@touch $@
