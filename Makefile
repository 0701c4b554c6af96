# `make` lists the targets; each makes the environment itself when it is missing or its pins changed.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

VENV ?= .venv
PROFILE ?=
DATA ?=
SET ?=
TORCH ?=
TORCH_INDEX ?=
JOBS ?=

# folders may have spaces in their names: quoted in recipes, escaped as targets
absolute = $(if $(filter /%,$(1)),$(1),$(CURDIR)/$(1))
SPACE := $(subst ,, )
V := $(strip $(VENV))
BIN := $(call absolute,$(V))/bin
READY := $(subst $(SPACE),\ ,$(V))/.ready
OWN_TORCH := $(strip $(TORCH)$(TORCH_INDEX))
export PATH := $(BIN):$(PATH)
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PYTHONHASHSEED ?= 0
ifneq ($(strip $(DATA)),)
export MIMSSL_DATA := $(call absolute,$(strip $(DATA)))
endif

.PHONY: help env reproduce data figures bench gpu test lab notebooks docs clean

help: ## this list
	@echo "make <target>, in a folder with Python 3.11 or newer on the path:"
	@sed -nE 's/^([a-z]+):[^#]*## (.*)$$/  \1|\2/p' $(firstword $(MAKEFILE_LIST)) | awk -F'|' '{printf "%-13s %s\n", $$1, $$2}'
	@echo "variables:"
	@echo "  PROFILE=smoke|claims|laptop|bench|paper  compose params.yaml from conf/ before reproducing (without it: params.yaml as it is)"
	@echo "  SET=\"recipes.mae.epochs=20\"  other values than those of PROFILE"
	@echo "  JOBS=<number>                stages, notebooks or tests at a time (reproduce: as many as there are cores; test: 2)"
	@echo "  DATA=<folder>                real data sets, one folder each (MIMSSL_DATA; or settings.ini)"
	@echo "  TORCH_INDEX=<address>        take torch from this package index, e.g. PyTorch's index of CPU builds"
	@echo "  TORCH=\"torch==... torchvision==...\"   other versions than the pinned ones (both 2.11+ and 0.26+)"
	@echo "  VENV=<folder>                another environment than .venv"

# ---- environment ------------------------------------------------------------------------------------
# uv installs when it is there, else pip. With TORCH or TORCH_INDEX, torch comes first and from there;
# then its pins and those of its CUDA libraries are left out of the lock.
env: $(READY) ## the environment in .venv: pinned packages and this one, editable

$(READY): requirements.lock pyproject.toml
	@old='print(sys.version_info < (3, 11))'; python=; \
	for p in python3.11 python3.12 python3.13 python3; do \
	  if [ "$$($$p -c "import sys; $$old" 2>/dev/null)" = False ]; then python=$$p; break; fi; done; \
	if [ -z "$$python" ]; then echo "error: no Python 3.11 or newer on the path; install one (python3.11 is what the pins were made with)."; exit 1; fi; \
	echo "environment: $(V) ($$($$python --version)); installing the packages takes some minutes the first time"; \
	[ -x "$(BIN)/python" ] || $$python -m venv "$(V)"; \
	if command -v uv >/dev/null; then pip=(uv pip install --quiet --python "$(BIN)/python"); else pip=("$(BIN)/python" -m pip install --quiet); fi; \
	if [ -n "$(OWN_TORCH)" ]; then \
	  torch="$(strip $(TORCH))"; torch=$${torch:-$$(grep -E '^(torch|torchvision)==' requirements.lock | xargs)}; \
	  "$${pip[@]}" $(if $(strip $(TORCH_INDEX)),--index-url $(strip $(TORCH_INDEX))) $$torch; \
	  grep -vE '^(torch|torchvision|triton|nvidia-[a-z0-9-]+|cuda-[a-z0-9-]+)==' requirements.lock > "$(V)/rest.lock"; \
	else cp requirements.lock "$(V)/rest.lock"; fi; \
	"$${pip[@]}" -r "$(V)/rest.lock"; \
	"$${pip[@]}" --no-deps --no-build-isolation -e .; \
	touch "$@"

# ---- the study --------------------------------------------------------------------------------------
# one thread for each stage wherever it runs, as the order of sums, and so the last bits, depends on their
# number, and as two stages with a thread each are faster than one with two; `dvc repro` finds nothing left to do
reproduce: export OMP_NUM_THREADS := $(or $(OMP_NUM_THREADS),1)
reproduce: data ## the whole study: data, training, evaluation, figures; a second call re-runs nothing
	@if [ -n "$(strip $(PROFILE))" ]; then "$(BIN)/python" -m mimssl.data.study compose $(strip $(PROFILE)) $(SET); fi
	@stale="$$("$(BIN)/python" -m mimssl.data.study stale)"; \
	if [ -n "$$stale" ]; then echo "changed data: $$stale"; "$(BIN)/dvc" repro --force --single-item $$stale; fi
	@"$(BIN)/python" -m mimssl.training.jobs $(strip $(JOBS))
	@"$(BIN)/dvc" repro
	@cat outputs/figures/results.txt; echo "figures and tables: outputs/figures/; executed notebooks: outputs/*/*/*.ipynb"

data: $(READY) ## the generated data set in data/scenes (about a minute, once)
	@"$(BIN)/python" -m mimssl.data.scenes

figures: data ## figures, README's tables and the paper notebooks again from the records in outputs/, without training
	@"$(BIN)/python" -m mimssl.training.runner --keep nbs/pipeline/figures.ipynb outputs/figures/figures.ipynb
	@"$(BIN)/python" -m mimssl.report.pages
	@OMP_NUM_THREADS=1 "$(BIN)/python" tools/notebooks.py run nbs/papers/*.ipynb

# lightly, transformers and faiss live in an environment of their own, on top of the project's
PEERS := .venv-bench
SITE := import site; print(site.getsitepackages()[0])
$(PEERS)/.ready: $(READY)
	@"$(BIN)/python" -m venv $(PEERS)
	@"$(BIN)/python" -c '$(SITE)' > "$$($(PEERS)/bin/python -c '$(SITE)')/project.pth"
	@$(PEERS)/bin/python -m pip install --quiet -c requirements.lock lightly==1.6.0 transformers==5.24.0 faiss-cpu==1.15.1
	@touch $@

bench: $(PEERS)/.ready data ## what a step of every method, every evaluation and whole training cost here, beside other libraries
	@$(PEERS)/bin/python -m mimssl bench
	@$(PEERS)/bin/python -m mimssl bench --libraries
	@$(PEERS)/bin/python -m mimssl bench --evaluations
	@$(PEERS)/bin/python -m mimssl bench --growth

gpu: data ## what an accelerator must do, in at most 8 minutes: parity, bf16, resume, compilation, costs, training
	@"$(BIN)/python" tools/gpu.py

# ---- proof ------------------------------------------------------------------------------------------
test: data ## everything that proves it works, under 15 minutes on two cores
	@echo "== component notebooks"
	@OMP_NUM_THREADS=1 "$(BIN)/nbdev-test" --n-workers $(or $(strip $(JOBS)),2) --timing --skip-folder-re '^([_.]|(pipeline|papers)$$)'
	@echo "== everything that crosses them, and the pipeline from end to end"
	@OMP_NUM_THREADS=1 "$(BIN)/python" -m pytest -n $(or $(strip $(JOBS)),2) --dist loadfile --no-loadscope-reorder --durations=5 tests

# ---- reading ----------------------------------------------------------------------------------------
lab: $(READY) ## JupyterLab in the environment
	@"$(BIN)/jupyter" lab nbs

notebooks: data ## execute notebooks and keep their outputs: N="nbs/methods/mae.ipynb ..."
	@OMP_NUM_THREADS=1 "$(BIN)/python" tools/notebooks.py run $(N)

docs: $(READY) ## the notebooks as a book in _docs/, to be opened without a server or a network
	@"$(BIN)/jupyter-book" build . --config nbs/_config.yml --toc nbs/_toc.yml --path-output _docs --quiet >/dev/null && echo "open _docs/_build/html/index.html"

clean: ## remove what can be made again: environment, book, scratch (keeps data/, results, DVC's cache)
	rm -rf "$(V)" $(PEERS) _docs _proc outputs/local *.egg-info
	find . -name __pycache__ -not -path './.git/*' -prune -exec rm -rf {} +
