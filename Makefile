# Every target makes .venv itself when it is missing or older than the metadata.
# Settings: PYTHON (3.10 or newer), OUT (the demo's folder), WORKERS (test processes), ARGS (more options of the command).
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# what tests and lint need on top: the RL libraries, and the readers of recordings
TESTED := $(VENV)/.installed_for_tests
OUT ?= runs/demo
WORKERS ?= 2
ARGS ?=
# what `make pretrained` makes, and where it keeps data and intermediate runs
NAME ?= tabletop-small
RUNS ?= runs/$(NAME)
PRETRAINED := worldgym/pretrained/$(NAME)

export MUJOCO_GL ?= egl
# Weights are bundled; nothing is fetched from a hub at run time.
export HF_HUB_OFFLINE ?= 1
# pip asks for news on every call otherwise
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Without stored bytecode `import torch` takes twice as long, and the tests start some hundred processes.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup demo test coverage test-slow test-newest test-clip test-clients test-notebooks test-claims campaign lint format bench gpu-check pretrained docs gl clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(STAMP): setup.cfg pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "worldgym needs Python 3.10 or newer; $(PYTHON) is $$($(PYTHON) -V 2>&1). Type: make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@# torch first: a resolver that meets a bare `torch` may choose another build, and gigabytes of CUDA with it
	$(BIN)/pip install --no-compile --quiet torch==2.13.0 -c constraints.txt
	$(BIN)/pip install --no-compile --quiet -c constraints.txt -e '.[dev,bench]'
	@touch $@

$(TESTED): $(STAMP)
	$(BIN)/pip install --no-compile --quiet -c constraints.txt -e '.[sb3,rllib,http,metaworld,recordings,vla,serve,flow]'
	@touch $@

setup: $(STAMP) ## make .venv and install worldgym with the tested versions (about 1.8 GB, one minute)
	@$(BIN)/worldgym info

gl:
	@$(PYTHON) -c 'import ctypes, os; os.environ.get("MUJOCO_GL", "egl") == "egl" and ctypes.CDLL("libEGL.so.1")' 2>/dev/null || \
		{ echo "MuJoCo needs libEGL.so.1 to draw, and it is missing. On Debian or Ubuntu type:"; \
		  echo "  apt-get install -y libegl1 libegl-mesa0 libgl1-mesa-dri"; exit 1; }

demo: gl $(STAMP) ## improve a policy inside the bundled world model and measure it in Real
	$(BIN)/worldgym demo --out $(OUT) $(ARGS)

# One torch thread a process: two processes with two threads each fight over two cores.
test: gl $(TESTED) ## the fast tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" -n $(WORKERS) --dist loadfile -q $(ARGS)

coverage: ## the fast tests, and which lines they ran (a tenth slower)
	$(MAKE) test ARGS='--cov --cov-report=term $(ARGS)'

test-slow: gl $(TESTED) ## the slow tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow -q $(ARGS)

# Ray pins gymnasium and metaworld pins mujoco, so the newest ones go in folders of their own, before the others. mujoco 4 is
# several packages of one version, so pip chooses them together.
NEWEST := PYTHONPATH=$(VENV)/newest OMP_NUM_THREADS=1 $(BIN)/python
NEWEST_MUJOCO := PYTHONPATH=$(VENV)/newest:$(VENV)/newest_mujoco OMP_NUM_THREADS=1 $(BIN)/python
test-newest: gl $(TESTED) ## the environments' contract once more, with the newest gymnasium and mujoco
	$(BIN)/pip install --no-compile --quiet --no-deps --upgrade --target $(VENV)/newest gymnasium
	$(BIN)/pip install --no-compile --quiet --upgrade --target $(VENV)/newest_mujoco mujoco
	$(NEWEST_MUJOCO) -c 'import gymnasium, mujoco; print("gymnasium", gymnasium.__version__, "mujoco", mujoco.__version__)'
	$(NEWEST_MUJOCO) -m pytest -m "not slow" -q tests/imagination/test_gymnasium_contract.py tests/imagination/test_recording.py \
		tests/envs/test_tabletop.py tests/envs/test_odd_settings.py -n $(WORKERS) --dist loadfile $(ARGS)
	$(NEWEST) -m pytest -m "not slow" -q tests/envs/test_metaworld.py -n $(WORKERS) $(ARGS)

# open_clip needs torchvision, which must not lie where transformers finds it (CONTRIBUTING.md): a folder of its own, too.
$(VENV)/clip/open_clip: | $(TESTED)
	$(BIN)/pip install --no-compile --quiet --no-deps -c constraints.txt --target $(VENV)/clip \
		open_clip_torch torchvision timm ftfy wcwidth

test-clip: $(VENV)/clip/open_clip ## the open_clip judge
	PYTHONPATH=$(VENV)/clip OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q tests/rewards/test_open_clip_judge.py $(ARGS)

# Clients bring a torchvision of another torch, and pins of their own: a folder of its own, without what they depend on.
# jax is what Minari records with; lancedb and what follows it is what stable-worldmodel imports, sb3_contrib and
# what follows it is what rl_zoo3 imports.
CLIENTS := torchrl tensordict pyvers orjson cloudpickle minari h5py jax jaxlib ml_dtypes opt_einsum pygame \
	stable-worldmodel loguru lancedb overrides lance_namespace lance_namespace_urllib3_client deprecation torchvision einops \
	opencv-python-headless openpi-client dm-tree rl_zoo3 sb3_contrib huggingface_sb3 optuna colorlog wasabi
$(VENV)/clients/torchrl: | $(TESTED)
	$(BIN)/pip install --no-compile --quiet --no-deps --target $(VENV)/clients $(CLIENTS)

test-clients: gl $(VENV)/clients/torchrl ## other people's clients on our ids: TorchRL, Minari, stable-worldmodel, rl_zoo3, openpi
	PYTHONPATH=$(VENV)/clients OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -rs tests/clients $(ARGS)

$(VENV)/.installed_for_notebooks: $(TESTED)
	$(BIN)/pip install --no-compile --quiet -c constraints.txt ipykernel nbmake
	@touch $@

test-notebooks: gl $(VENV)/.installed_for_notebooks ## execute the notebooks, everything in them small
	WORLDGYM_TINY=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest --nbmake --nbmake-timeout=600 -q notebooks $(ARGS)

CLAIMS := runs/tiny_claims
test-claims: gl $(STAMP) ## a published claim on the bundled weights, everything in it small
	OMP_NUM_THREADS=1 $(BIN)/worldgym claims run C1 --preset tiny --threads 1 --results $(CLAIMS) --work $(CLAIMS)/work $(ARGS)
	$(BIN)/worldgym claims report --preset tiny --results $(CLAIMS)

CAMPAIGN := runs/campaign
campaign: gl $(TESTED) ## kills, damaged files, full disks, bad endpoints, rendering (about an hour on 2 cores); goes on where it stopped
	mkdir -p $(CAMPAIGN)
	for tool in mutations judge_endpoint rendering disks kills processes; do \
		OMP_NUM_THREADS=1 $(BIN)/python -m tests.campaign.$$tool --work $(CAMPAIGN)/work --out $(CAMPAIGN)/$$tool.jsonl $(ARGS) || bad=1; done; \
	$(BIN)/python -m tests.campaign.report --in $(CAMPAIGN) --out docs/reliability.md; test -z "$$bad"

lint: $(TESTED) ## ruff, mypy on the public API, import-linter
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP) ## wrap and sort with ruff
	$(BIN)/ruff check --fix --select I .
	$(BIN)/ruff format .

bench: gl $(STAMP) ## the closed-loop gate on the bundled checkpoint
	$(BIN)/worldgym bench closed-loop $(ARGS)

gpu-check: $(TESTED) ## speed and memory on one GPU (8 minutes); needs a build of torch with CUDA in .venv
	$(BIN)/worldgym bench gpu --json docs/results/data/gpu.json $(ARGS)

pretrained: gl $(STAMP) $(VENV)/clip/open_clip ## build the bundled checkpoint from nothing (15 hours); goes on when typed again
	$(BIN)/worldgym build recipes/tabletop.yaml --out $(RUNS)
	cp -R $(RUNS)/tabletop-small/. $(PRETRAINED)/

$(VENV)/.installed_for_docs: $(STAMP)
	$(BIN)/pip install --no-compile --quiet -c constraints.txt -e '.[docs]'
	@touch $@

# NO_MKDOCS_2_WARNING turns off an announcement of mkdocs-material. docs/hooks.py adds the page of all commands' options.
docs: $(VENV)/.installed_for_docs ## build the documentation site into site/; a broken link is an error (half a minute)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict $(ARGS)

clean: ## remove caches (not .venv, data or runs)
	rm -rf .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis .coverage .coverage.* build dist site *.egg-info
