# Two commands, each of which sets up all that it needs in .venv:
#   make train                     the three phases            make train ARGS="--preset tiny"
#   make test                      the tests
PYTHON ?= python3
ARGS ?=
VENV := .venv

.PHONY: train test

train: $(VENV)/.runtime
	$(VENV)/bin/python train_tinystories.py $(ARGS)

test: $(VENV)/.dev
	$(VENV)/bin/python -m pytest -q -n auto $(ARGS)

$(VENV)/.runtime: requirements.txt | $(VENV)/bin/python
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

$(VENV)/.dev: requirements.txt requirements-dev.txt | $(VENV)/bin/python
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $(VENV)/.runtime $@

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "Python 3.10 or newer is needed; name one with: make PYTHON=python3.12"; exit 2; }
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "could not make a virtual environment; on Debian and Ubuntu: apt install python3-venv"; exit 2; }
