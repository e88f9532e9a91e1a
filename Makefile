# Everything runs in a virtual environment of the checkout; see `make help`.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed

.PHONY: help install test lint docs claims reproduce quickstart torture slice gpu clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(INSTALLED) ## create .venv and install the project with the tested versions

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

test: $(INSTALLED) ## run the test suite, in a process for each core
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist worksteal

lint: $(INSTALLED) ## check style, types and spelling
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/codespell $(SPELLED)

docs: $(INSTALLED) ## build the documentation into site/; broken links are errors
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

claims: $(INSTALLED) ## check that the numbers of README and docs are those of results/
	$(BIN)/python scripts/claims.py --check

reproduce: $(INSTALLED) ## train and draw a figure or table of the paper afresh: make reproduce FIG=5b
	$(BIN)/python scripts/reproduce.py $(or $(FIG),--help)

SPELLED := README.md CHANGELOG.md CONTRIBUTING.md docs examples rad scripts configs tests

QUICKSTART_VARIANTS := baseline,reduced_batch,same_sample,different_sample,project

quickstart: $(INSTALLED) ## train five variants on digits (no download), draw outputs/quickstart.png
	$(BIN)/python scripts/train.py -m experiment=quickstart variant=$(QUICKSTART_VARIANTS) seed=0,1,2
	$(BIN)/python scripts/plot.py experiment=quickstart output=outputs/quickstart.png

torture: $(INSTALLED) ## kills, bad disks, damage, nonsense and planted faults; results/torture, some 30 minutes
	OMP_NUM_THREADS=1 MPLBACKEND=Agg $(BIN)/python scripts/torture.py

SLICE := 'cases={kill:14,disk:4,damage:22,nonsense:60,fault:0}' output=outputs/torture scratch=outputs/slice

slice: $(INSTALLED) ## two minutes of `make torture`
	OMP_NUM_THREADS=1 MPLBACKEND=Agg $(BIN)/python scripts/torture.py $(SLICE)

gpu: $(INSTALLED) ## tests, benchmarks and missing paper-scale results on a GPU, ten minutes a call
	$(BIN)/python scripts/gpu.py time_limit=540 --archive outputs/gpu.tar.gz

clean: ## remove the virtual environment and caches (results stay)
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info site
