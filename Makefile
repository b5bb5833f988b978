# `make` is the whole run. Every target can be interrupted; run it again to continue.
#
#   CONFIG=configs/x.yaml   the run               SET="seed=1 distill.steps=100"   override its keys
#   PYTHON=python3          an interpreter that has the packages: no .venv is made
#   NPROC=4                 processes (torchrun)                    ROUND=2   one round only (make all: up to it)
#   DEVICE=cuda:1           the device                              DRY_RUN=1   print the resolved config and the outputs
#
# SET and RUNS are split at spaces, so values have none: classes=[1,2], not [1, 2]. List items are named by number:
# synthesis.inversion.phases.0.steps=500.

# What a killed make has started ends by itself.
export DREAMDISTILL_ENDS_WITH_PARENT := 1

CONFIG ?= configs/digits.yaml
SET ?=
ROUND ?=
DRY_RUN ?=
NPROC ?= 1
DEVICE ?=

# The first Python on PATH with a version that PyTorch and the other packages support.
SUPPORTED := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
SYSTEM_PYTHON = $(shell for name in python3 python3.13 python3.12 python3.11; do $$name -c "$(SUPPORTED)" 2>/dev/null && echo $$name && break; done)

ifdef PYTHON
  READY :=
  READY_DEV :=
else
  PYTHON := .venv/bin/python
  READY := .venv/ready
  READY_DEV := .venv/ready-dev
endif

# import-linter, run by this interpreter.
LINT_IMPORTS := from importlinter.cli import lint_imports_command; lint_imports_command()
ARGUMENTS = --config '$(CONFIG)' $(SET) $(if $(ROUND),--round $(ROUND)) $(if $(DEVICE),--device $(DEVICE)) \
  $(if $(filter-out 1,$(NPROC)),--processes $(NPROC)) $(if $(DRY_RUN),--dry-run)

.DEFAULT_GOAL := all
.NOTPARALLEL:
.PHONY: all doctor estimate teacher synthesize distill evaluate quality report compare export verify unpack imagenet-val test lint bench docs clean help

all: $(READY)  ## teacher, synthesis and distillation round by round, evaluation, report
	@$(PYTHON) -m stages run $(ARGUMENTS)

doctor estimate teacher synthesize distill evaluate quality report export verify clean: $(READY)
	@$(PYTHON) -m stages $@ $(ARGUMENTS)

doctor:      ## check machine, networks, normalization, images and disk of this CONFIG, in seconds
estimate:    ## predict hours, memory and disk of this CONFIG from a few steps on this machine
teacher:     ## train a teacher if the config names no weights
synthesize:  ## invert the teacher into shards: the next round that is not complete
distill:     ## train the student on the shards: the next round that has no student
evaluate:    ## the student beside its teacher on real images
quality:     ## score the synthetic images: predictions, diversity, distances to real images
report:      ## one HTML page about the run
export:      ## the student as safetensors, torch.export and ONNX files, compared and timed, with a model card
verify:      ## check every file of the run: whole, damaged, or not of it
clean:       ## remove the shards and checkpoints of this CONFIG

compare: $(READY)  ## runs beside each other on one page: RUNS="a b c"
	@$(PYTHON) -m stages compare $(RUNS)

unpack: $(READY)  ## write the images of the run into class folders: [FOLDER=...]
	@$(PYTHON) -m stages unpack --config '$(CONFIG)' $(SET) $(if $(ROUND),--round $(ROUND)) $(if $(FOLDER),--folder '$(FOLDER)')

imagenet-val: $(READY)  ## sort the official validation images into data/imagenet/val: TAR=... DEVKIT=... [FOLDER=...]
	@$(PYTHON) -m stages imagenet-val $(if $(TAR),--tar '$(TAR)') $(if $(DEVKIT),--devkit '$(DEVKIT)') $(if $(FOLDER),--folder '$(FOLDER)')

test: $(READY_DEV)  ## run the tests in two processes; ARGS="-m 'not slow'" leaves out the slow ones
	@$(PYTHON) -m pytest --numprocesses 2 $(ARGS)

lint: $(READY_DEV)  ## check style, types and the directions of imports
	@$(PYTHON) -m ruff format --check --quiet .
	@$(PYTHON) -m ruff check --quiet .
	@$(PYTHON) -m mypy --no-error-summary
	@output=$$($(PYTHON) -c "$(LINT_IMPORTS)" --no-logo --no-cache) || { echo "$$output"; exit 1; }

bench: $(READY)  ## measure on this machine, writing JSON under benchmarks/results
	@for name in runs inversion choices storing pictures profile distillation restart shards; do $(PYTHON) -m benchmarks.$$name || exit 1; done

docs: $(READY)  ## write docs/configuration.md, and what --help shows, from the docstrings of the config dataclasses
	@$(PYTHON) -m stages.reference

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

.venv/ready: requirements.lock pyproject.toml
	@test -n "$(SYSTEM_PYTHON)" || { echo "no Python of version 3.11 to 3.13 was found on PATH; install one, or name yours: make PYTHON=..." >&2; exit 2; }
	$(SYSTEM_PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --constraint requirements.lock --editable .
	@touch $@

.venv/ready-dev: .venv/ready
	.venv/bin/python -m pip install --quiet --constraint requirements.lock --editable '.[dev]'
	@touch $@
