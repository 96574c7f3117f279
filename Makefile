# Everything that can be done with the book. `make help` lists it.

PYTHON ?= python3
PORT ?= 8000
PY := .venv/bin/python
# Real data sets, where they lie beside the checkout; downloads go to the user's cache.
GENLIB_DATA ?= $(abspath $(wildcard ../shared/data))
ifneq ($(GENLIB_DATA),)
export GENLIB_DATA
endif
# One thread a process: tests and notebooks run side by side.
export OMP_NUM_THREADS ?= 1
# Tools of the venv first, node and npm for the page's files among them.
export PATH := $(CURDIR)/.venv/bin:$(PATH)

NOTEBOOKS := $(wildcard notebooks/*.ipynb assignments/*.ipynb)

.DEFAULT_GOAL := help
.PHONY: help install serve book lab notebooks sync check test colab bench pdf speed \
  release grade repository clean

help: ## list these commands
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' Makefile

install: .venv/.installed ## create .venv and install everything into it

.venv/.installed: requirements.txt pyproject.toml tools/install.py
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit( \
	  "the book needs Python 3.11 or later; $(PYTHON) is %d.%d. Name another: make PYTHON=python3.12" % v[:2])'
	$(PYTHON) -m venv .venv
	$(PY) tools/install.py
	@touch $@

serve: book ## build the book and serve it on 127.0.0.1 (PORT=8000)
	$(PY) tools/serve.py --port $(PORT)

book: install ## build the site into _build/html, and a zip of it to read offline
	$(PY) tools/vendor.py
	@mkdir -p _build
	@echo "Building the site"
	@# Its closing words send readers to file://, where live figures stay pictures.
	@.venv/bin/jupyter-book build . -W -n --keep-going > _build/book.log 2>&1 \
	  || { cat _build/book.log; exit 1; }
	@$(PY) tools/pack.py

lab: install ## open JupyterLab on the notebooks
	$(PY) -m jupyterlab notebooks \
	  --ServerApp.kernel_websocket_connection_class=tools.lab.AtOnce

notebooks: install ## re-execute notebooks that changed and store them (N=03_vae, ALL=1)
	$(PY) -m tools.notebooks $(if $(ALL),--all) $(N)

sync: install ## write the library's code into the notebooks that show it
	$(PY) -m tools.sync

check: install ## format, lint, sync, layout: seconds
	$(PY) -m ruff format --check --quiet . $(NOTEBOOKS)
	$(PY) -m ruff check --quiet . $(NOTEBOOKS)
	$(PY) -m tools.sync --check
	$(PY) -m pytest -q tests/test_layout.py -k "not module"

test: check book ## everything: units, notebooks, the book in a browser
	$(PY) -m pytest notebooks tests --nbval --nbval-current-env \
	  --nbval-sanitize-with tests/sanitize.cfg --nbval-cell-timeout 300 \
	  -n 2 --dist loadscope --durations 10

colab: ## run the notebooks with the versions that Colab ships
	$(PYTHON) -m tools.colab $(N)

bench: install ## measure genlib beside its peers (an hour; needs the data sets)
	$(PY) -m bench.vae
	$(PY) -m bench.gan
	$(PY) -m bench.transformer
	$(PY) -m bench.gpt
	$(PY) tools/vendor.py
	$(PY) -m bench.live
	$(PY) -m bench.webgpu

pdf: book ## print each page, and the book in one file, into _build/pdf
	$(PY) tools/pdf.py $(PAGES)

speed: book ## how fast chapters come up on a slow connection (ARGS="--profile lighthouse")
	$(PY) tools/speed.py $(ARGS)

release: install ## build the assignments' students' copies, and the keys (A=vae)
	$(PY) -m tools.course.release $(A)

grade: install ## grade a folder of submissions (SUBMISSIONS=folder A=vae OUT=folder)
	@test -n "$(SUBMISSIONS)" -a -n "$(A)" -a -n "$(OUT)" \
	  || { echo "usage: make grade SUBMISSIONS=folder A=vae OUT=folder"; exit 2; }
	$(PY) -m tools.course.grade "$(SUBMISSIONS)" --assignment "$(A)" --out "$(OUT)"

repository: install ## set the repository's address everywhere: URL=https://host/owner/name
	$(PY) -m tools.repository "$(URL)"

clean: ## remove what was built; .venv stays
	rm -rf _build node_modules book/_static/vendor .pytest_cache .ruff_cache
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
