# make demo   set up .venv, condense the photographs of scikit-image
# make check  set up .venv, run ruff, mypy and the fast tests: before each commit
# make test   set up .venv, run ruff, mypy and all tests
# make docs   set up .venv, build the documentation site: build/site/index.html
# make format format the code
# make audit  look for known vulnerabilities and licences in what users install, write the SBOM: build/sbom.json
#
# PYTHON=/path/to/python chooses an interpreter; the default is the first one that is new enough.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

ifndef PYTHON
PYTHON := $(shell for p in python3.11 python3 python3.12 python3.13; do \
  "$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { command -v "$$p"; break; }; done)
endif
# If it is set, as in many containers, each of the hundreds of processes that a job or the tests start compiles
# torch and Ray again, which takes 2.5 times the CPU time of a small job.
export PYTHONDONTWRITEBYTECODE :=
VENV := .venv
RUN := $(VENV)/bin/python
PIP := $(RUN) -m pip --disable-pip-version-check
# --no-compile: compiling all installed files takes a third of the set-up; Python compiles what it imports.
INSTALL := $(PIP) install -q --no-compile
DEMO := idc_demo

# Without a GPU, the CPU build of torch saves gigabytes of CUDA libraries.
HAS_GPU := $(shell nvidia-smi -L 2>/dev/null | grep -q GPU && echo yes)
ifeq ($(HAS_GPU),yes)
TORCH := torch
CONSTRAINTS :=
else
TORCH := $(shell grep '^torch==' constraints-cpu.txt)
CONSTRAINTS := -c constraints-cpu.txt
endif

.PHONY: help demo check test docs lint format audit clean

help:
	@sed -n 's/^# \(make .*\)/\1/p' Makefile

# Each stamp is written last, so that an interrupted set-up is repeated.
$(VENV)/.torch: constraints-cpu.txt
	@"$(or $(PYTHON),python3)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "$(or $(PYTHON),python3) is not Python 3.11 or newer; choose one: make PYTHON=/path/to/python ..." >&2; exit 1; }
	@echo "Setting up $(VENV) with $$("$(PYTHON)" --version) and $(TORCH) ($(if $(HAS_GPU),an NVIDIA GPU is visible,no NVIDIA GPU is visible)); some minutes"
	"$(PYTHON)" -m venv $(VENV)
	$(INSTALL) $(CONSTRAINTS) $(TORCH)
	@touch $@

$(VENV)/.demo: $(VENV)/.torch pyproject.toml
	$(INSTALL) $(CONSTRAINTS) -e '.[report]'
	@touch $@

$(VENV)/.dev: $(VENV)/.torch pyproject.toml
	$(INSTALL) $(CONSTRAINTS) -e '.[dev,all]'
	@touch $@ $(VENV)/.demo

$(VENV)/.docs: $(VENV)/.torch pyproject.toml
	$(INSTALL) $(CONSTRAINTS) -e '.[docs]'
	@touch $@

demo: $(VENV)/.demo
	$(RUN) -m idc_ray condense --output $(DEMO)
	@echo "Condensed set: $(DEMO)/shards/*.parquet"
	@echo "Images:        $(DEMO)/report.html, $(DEMO)/gallery.png"

# Fast tests of the folders without Ray and of the top level, which start no cluster.
FAST_TESTS := tests/images tests/models tests/condensation tests/store $(wildcard tests/test_*.py)

check: lint
	$(RUN) -m pytest -n 2 --dist loadfile -m 'not slow and not ray' $(FAST_TESTS)

# Two processes on any machine: with more, tests that kill jobs within seconds become too slow. Tests of a file share fixtures.
test: lint
	$(RUN) -m pytest -n 2 --dist loadfile

# Needs no network once its packages are installed. Dead links, missing pages and invalid docstrings are errors.
docs: $(VENV)/.docs
	$(RUN) -m sphinx -q -W --keep-going -c docs -d build/doctrees . build/site

lint: $(VENV)/.dev
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

format: $(VENV)/.dev
	$(RUN) -m ruff format .
	$(RUN) -m ruff check --fix .

# What users install, without the package itself, which no index has; and the tools apart from it.
build/audit/.installed: pyproject.toml constraints-cpu.txt
	"$(PYTHON)" -m venv --clear build/audit/installed
	build/audit/installed/bin/python -m pip install -q --no-compile $(CONSTRAINTS) $(TORCH) '.[all]'
	build/audit/installed/bin/python -m pip uninstall -q -y idc_ray
	"$(PYTHON)" -m venv --clear build/audit/tools
	build/audit/tools/bin/python -m pip install -q pip-audit pip-licenses cyclonedx-bom
	@touch $@

# Needs the network. --strict: packages that could not be looked up are an error, not "no vulnerabilities".
audit: build/audit/.installed
	build/audit/tools/bin/cyclonedx-py environment --pyproject pyproject.toml --of JSON -o build/sbom.json \
	  build/audit/installed/bin/python
	build/audit/tools/bin/pip-licenses --python build/audit/installed/bin/python --summary --partial-match \
	  --fail-on 'GPL;SSPL;EUPL;Commercial'
	build/audit/tools/bin/pip-audit --strict --progress-spinner off --path build/audit/installed/lib/python*/site-packages

clean:
	rm -rf $(VENV) $(DEMO) $(DEMO).photographs
