# make train        the whole story, on any machine: install, four stages, gate refit, test tasks, table
# make help         the other targets
SHELL := /bin/bash
.DEFAULT_GOAL := help

RUN ?= mini
CONFIG ?= mini
PROFILE ?= cpu
OVERRIDES ?=
# Of evaluate: the folder of MMEB-V2 (empty: the run's own suite), which of its tasks, and how many processes share the work.
DATA ?=
TASKS ?=
RANKS ?= 1
# Of ablations and results: seeds, runs at a time, and the config if there is one of its own.
SEEDS ?= 1,2,3
JOBS ?= 2
ABLATION_CONFIG ?= $(if $(wildcard experiments/configs/ablation.yaml),ablation,$(CONFIG))
ABLATION_RUN ?= $(ABLATION_CONFIG)
# Of test: processes, each of which runs whole files.
WORKERS ?= 2
BASE_PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3)
# A further package index that carries CPU builds of torch; the configured indexes are tried in any case.
TORCH_INDEX ?=
TORCH ?= 2.13.0
TORCHVISION ?= 0.28.0

VENV := .venv
PYTHON := $(VENV)/bin/python
STAMP := $(VENV)/.installed
PIP := $(PYTHON) -m pip install --disable-pip-version-check -c constraints.txt $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))
SETTINGS := --config $(CONFIG) --profile $(PROFILE) --run $(RUN) $(OVERRIDES)
MMEB = data.suite=mmeb_v2 data.root="$(DATA)" $(if $(TASKS),data.tasks=[$(TASKS)])
EVALUATE = $(if $(filter 1,$(RANKS)),$(PYTHON) -m experiments.evaluate,$(VENV)/bin/torchrun --standalone --nproc-per-node $(RANKS) -m experiments.evaluate --)
# Commands on a run that is there take the settings that it was made with.
FINISHED := --run $(RUN) $(OVERRIDES)
SWEEP = $(PYTHON) -m experiments.sweep
SWEPT = --config $(ABLATION_CONFIG) --profile $(PROFILE) --run $(ABLATION_RUN) --seeds $(SEEDS) --jobs $(JOBS) $(OVERRIDES)
ABLATIONS := ablation-dual-lora ablation-interface ablation-reward ablation-stages ablation-queries ablation-rivals ablation-sides

# Spinning OpenMP threads collapse when something else wants the cores.
export OMP_WAIT_POLICY := PASSIVE
export TOKENIZERS_PARALLELISM := false
export HF_HUB_OFFLINE ?= 1

.PHONY: help install test-unit test-ecosystem bench train train-stage1 train-stage2 train-stage3 train-stage4 evaluate ablations results ablation-gate $(ABLATIONS) check-data bench-stage1 bench-gpu pretrain-backbone mlflow-ui test check format clean

help:  ## This list
	@awk 'BEGIN {FS = ":.*## "} /^[a-z0-9-]+:.*## / {printf "  make %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo '  Variables: RUN=$(RUN) CONFIG=$(CONFIG) PROFILE=$(PROFILE) OVERRIDES="key=value …"; of some targets DATA TASKS RANKS SEEDS JOBS PORT TESTS WORKERS;  e.g.  make train RUN=two OVERRIDES="seed=2 model.num_queries=4"'

install: $(STAMP)  ## Make .venv with the pinned versions (a second call installs nothing)

$(STAMP): setup.cfg pyproject.toml constraints.txt
	@test -n "$(BASE_PYTHON)" || { echo "No Python 3.11 or newer found: install one, or call make with BASE_PYTHON=/path/to/python."; exit 1; }
	@"$(BASE_PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "$(BASE_PYTHON) is older than Python 3.11: call make with BASE_PYTHON=/path/to/python."; exit 1; }
	@test -x $(PYTHON) || "$(BASE_PYTHON)" -m venv $(VENV)
	@if $(PYTHON) -c 'import importlib.metadata as m, sys; sys.exit(m.version("torch").split("+")[0] != "$(TORCH)")' 2>/dev/null; then \
	    echo "torch $(TORCH) is there."; \
	elif command -v nvidia-smi >/dev/null 2>&1; then \
	    $(PIP) "torch==$(TORCH)" "torchvision==$(TORCHVISION)"; \
	else \
	    echo "No GPU found: trying the CPU build of torch first."; \
	    $(PIP) "torch==$(TORCH)+cpu" "torchvision==$(TORCHVISION)+cpu" 2>/dev/null \
	        || $(PIP) "torch==$(TORCH)+cpu" 2>/dev/null \
	        || $(PIP) "torch==$(TORCH)" "torchvision==$(TORCHVISION)"; \
	fi
	$(PIP) -e ".[mini,dev]"
	@touch $(STAMP)

train: $(STAMP)  ## Four stages, gate refit and the table on the test tasks (goes on where it was stopped)
	$(PYTHON) -m experiments.train all $(SETTINGS)

train-stage1 train-stage2 train-stage3 train-stage4: train-stage%: $(STAMP)
	$(PYTHON) -m experiments.train stage$* $(SETTINGS)

train-stage1:  ## Contrastive: embedding adapter and queries
train-stage2:  ## CoT fine-tuning and contrastive learning, jointly
train-stage3:  ## Routing gate, on the model's own thoughts
train-stage4:  ## GRPO on the reasoning adapter

evaluate: $(STAMP)  ## Test tasks on a finished run: never, always, auto, oracle; DATA=FOLDER: those of MMEB-V2 in it
	$(EVALUATE) $(if $(DATA),$(MMEB)) $(FINISHED)

check-data: $(STAMP)  ## What is missing or unreadable in a config's training data (and in MMEB-V2 under DATA=FOLDER)
	$(PYTHON) -m experiments.check_data $(if $(DATA),$(MMEB)) $(SETTINGS)

ablations: $(STAMP)  ## Every ablation, each variant with each seed, as nested MLflow runs; a table for each
	$(SWEEP) all $(SWEPT)

ablation-dual-lora: $(STAMP)  ## Two adapters apart, against one, attached ones, two models
	$(PYTHON) -m experiments.ablation_dual_lora $(SWEPT)

ablation-interface: $(STAMP)  ## Reading the cache against reading anew
	$(PYTHON) -m experiments.ablation_interface $(SWEPT)

ablation-reward: $(STAMP)  ## Stage 4 without each part of the reward, and with others' rewards
	$(PYTHON) -m experiments.ablation_reward $(SWEPT)

ablation-stages: $(STAMP)  ## Each stage left out
	$(PYTHON) -m experiments.ablation_stages $(SWEPT)

ablation-queries: $(STAMP)  ## How many queries make an embedding
	$(PYTHON) -m experiments.ablation_queries $(SWEPT)

ablation-rivals: $(STAMP)  ## Other methods as settings of the same stages
	$(PYTHON) -m experiments.ablation_rivals $(SWEPT)

ablation-sides: $(STAMP)  ## Which side should think, from the records of finished base runs
	$(PYTHON) -m experiments.ablation_sides $(SWEPT)

results: $(STAMP)  ## Base runs, those without stage 4, and all ablations with each seed, their records in docs/results, and the page from them
	$(SWEEP) stages --variants without_grpo --config $(CONFIG) --profile $(PROFILE) --run $(RUN) --seeds $(SEEDS) --jobs $(JOBS) --collect $(OVERRIDES)
	$(SWEEP) all $(SWEPT) --collect
	$(PYTHON) -m experiments.results_page
	$(PYTHON) -m experiments.readme_results

ablation-gate: $(STAMP)  ## Gate modes and a threshold sweep on a finished run
	$(PYTHON) -m experiments.ablation_gate $(FINISHED)

bench-stage1: $(STAMP)  ## Time and memory of stage 1 against plain LoRA contrastive training
	$(PYTHON) -m experiments.bench_stage1 --config $(CONFIG) --profile $(PROFILE) $(OVERRIDES)

bench: $(STAMP)  ## What the encoder, stage 1, rollouts and ranking cost beside the plain way (docs/benchmarks.md)
	$(PYTHON) -m experiments.bench $(OVERRIDES)

bench-gpu: $(STAMP)  ## Tokens a second, MFU and peak memory of all stages at true shapes (random weights)
	$(PYTHON) -m experiments.bench_gpu $(OVERRIDES)

pretrain-backbone: $(STAMP)  ## Train a tiny backbone from nothing (make train does not need it)
	$(PYTHON) -m experiments.pretrain_backbone $(OVERRIDES)

mlflow-ui: $(STAMP)  ## Compare runs in a browser
	@mkdir -p runs
	$(PYTHON) -m mlflow ui --host 127.0.0.1 --port $(or $(PORT),5000) --workers 1 --backend-store-uri sqlite:///$(abspath runs/mlflow.db)

test: export OMP_NUM_THREADS := 1
test: $(STAMP)  ## All tests but those of test-ecosystem, with coverage of the four packages
	$(PYTHON) -m pytest -n $(WORKERS) --dist loadfile -m "not ecosystem" --cov --cov-report=term $(TESTS)

test-unit: export OMP_NUM_THREADS := 1
test-unit: $(STAMP)  ## The quick tests, without coverage
	$(PYTHON) -m pytest -n $(WORKERS) --dist loadfile -m "not slow and not ecosystem" $(TESTS)

test-ecosystem: export OMP_NUM_THREADS := 1
test-ecosystem: $(STAMP)  ## The tests that need Ray, mteb or a browser (installs them; Chromium comes from the system)
	$(PIP) -e ".[mini,dev,ecosystem]"
	$(PYTHON) -m pytest -m ecosystem tests

check: $(STAMP)  ## ruff, mypy strict, import contracts
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy
	$(VENV)/bin/lint-imports --config setup.cfg

format: $(STAMP)  ## Let ruff format and mend what it can
	$(PYTHON) -m ruff check --fix .
	$(PYTHON) -m ruff format .

clean:  ## Remove caches and builds (keeps .venv and runs)
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache htmlcov .coverage .coverage.*
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
