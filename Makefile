# Two commands do everything on a fresh machine with Python 3.11 or newer: `make book` and `make test`.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
HTML   := _build/html
PORT   ?= 8000
NB     ?=
BENCH  ?=

# Two worker processes with one thread each: threads that wait for each other cost more than they bring.
export OMP_NUM_THREADS ?= 1
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile

.DEFAULT_GOAL := help
.PHONY: help book serve test test-package test-notebooks test-html test-colab links notebooks new-chapter bench lint format \
        lock repository clean distclean

help: ## Show these commands
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1@\2/' | column -t -s @

$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "otbook needs Python 3.11 or newer; run make with PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@

book: $(READY) ## Build the book, warnings as errors (creates the environment if needed)
	$(BIN)/jupyter-book build . --all -W --keep-going
	@echo "The book is at $(CURDIR)/$(HTML)/index.html — \`make serve\` shows it at http://localhost:$(PORT)"

serve: $(READY) ## Serve the built book on this machine (PORT=8000)
	@test -d $(HTML) || { echo "Nothing is built yet: run \`make book\` first"; exit 1; }
	$(BIN)/python -m http.server --bind 127.0.0.1 --directory $(HTML) $(PORT)

test: START := $(shell date +%s)
test: test-package test-notebooks book test-html ## Verify everything
	@$(BIN)/python book/_tools/summary.py $(START)

test-package: $(READY) ## Unit, property and documentation tests
	$(PYTEST) tests otbook --ignore tests/browser --ignore tests/test_colab.py --doctest-modules

test-notebooks: $(READY) ## Re-execute the notebooks and compare every stored output, or one: NB=book/….ipynb
	TQDM_DISABLE=1 $(PYTEST) -p tests.nbval_figures --nbval --nbval-current-env --nbval-cell-timeout 120 \
	  --nbval-sanitize-with tests/nbval_sanitize.cfg $(or $(NB),tests/test_colab.py book)

test-html: $(READY) ## Open every built page in a real browser
	$(BIN)/python -m pytest tests/browser

test-colab: $(READY) ## Run every notebook alone, as on Colab: its bootstrap cell installs this checkout
	OTBOOK_ALONE=all $(BIN)/python -m pytest tests/test_colab.py

links: $(READY) ## Ask every other site that the book links to whether the page is there
	$(BIN)/jupyter-book build . --all --builder linkcheck

notebooks: $(READY) ## Execute all notebooks and store their outputs, or one: NB=book/….ipynb
	$(BIN)/python book/_tools/notebooks.py execute $(NB)

new-chapter: $(READY) ## Start a chapter: NB=book/part/name.ipynb TITLE="Its title"
	@test -n "$(NB)" -a -n "$(TITLE)" || { echo 'Say which: make new-chapter NB=book/part/name.ipynb TITLE="Its title"'; exit 1; }
	$(BIN)/python book/_tools/notebooks.py new $(NB) "$(TITLE)"

bench: ## Print the speed ratios against other libraries, or some: BENCH="B1 B3 --quick"
	@test -e $(VENV)-bench/.ready || { $(PYTHON) -m venv $(VENV)-bench \
	  && $(VENV)-bench/bin/python -m pip install --quiet --constraint requirements.lock --editable '.[bench]' && touch $(VENV)-bench/.ready; }
	$(VENV)-bench/bin/python -m benchmarks $(BENCH)

lint: $(READY) ## Check style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@! grep -rnE --include='*.py' '^\s*(np|numpy|torch)\.allclose\(' . --exclude-dir='$(VENV)*' \
	  || { echo "A comparison that nobody asserts: use torch.testing.assert_close"; exit 1; }

format: $(READY) ## Bring the code into the common style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lock: ## Pin the newest versions that pyproject.toml allows
	rm -rf $(VENV)-lock && $(PYTHON) -m venv $(VENV)-lock
	$(VENV)-lock/bin/python -m pip install --quiet --editable '.[test]'
	{ grep '^#' requirements.lock; $(VENV)-lock/bin/python -m pip freeze --exclude-editable; } > requirements.new
	mv requirements.new requirements.lock && rm -rf $(VENV)-lock

repository: $(READY) ## Stamp the repository's address everywhere: URL=https://github.com/owner/name
	@test -n "$(URL)" || { echo 'Say where: make repository URL=https://github.com/owner/name'; exit 1; }
	$(BIN)/python book/_tools/repository.py $(URL)

clean: ## Remove what was built
	rm -rf _build .pytest_cache .ruff_cache .hypothesis *.egg-info
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

distclean: clean ## Remove the environment too
	rm -rf $(VENV) $(VENV)-bench
