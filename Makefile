# Two commands: `make demo` (DATA=folder for your own data, LOSS, EPOCHS, OUT) and `make test`.
# TORCH_INDEX=https://download.pytorch.org/whl/cpu (say) takes PyTorch from another index.
PYTHON ?= python3
VENV ?= .venv
NNUNET_VENV ?= .venv-nnunet
BIN := $(VENV)/bin
FOR_DEMO := $(VENV)/.installed_bundle
FOR_TESTS := $(VENV)/.installed_dev
TORCH_INDEX ?=
LOSS ?= dice_ce
# Two processes of one thread each use two cores better than one process of two threads.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

.PHONY: demo test test-all test-nnunet lint docs audit bench dist clean

# pip talks, because a first installation takes minutes: PyTorch for GPUs is gigabytes.
define install
	@echo "Installing PyTorch, MONAI and what $(2) needs into $(VENV); the first time this takes minutes."
	$(PYTHON) -m venv $(VENV)
	$(if $(TORCH_INDEX),$(BIN)/python -m pip install -c constraints.txt torch --index-url $(TORCH_INDEX))
	$(BIN)/python -m pip install -c constraints.txt -e '.[$(1)]'
	touch $@
endef

$(FOR_DEMO): pyproject.toml constraints.txt
	$(call install,bundle,a training)

$(FOR_TESTS): pyproject.toml constraints.txt
	$(call install,dev,the tests)
	touch $(FOR_DEMO)

demo: $(FOR_DEMO)
	$(BIN)/monai-extra-losses demo --loss $(LOSS) $(if $(DATA),--data "$(DATA)") $(if $(OUT),--out "$(OUT)") \
		$(if $(EPOCHS),--epochs $(EPOCHS))

test: $(FOR_TESTS)
	$(PYTEST) -m "not slow"

test-all: $(FOR_TESTS)
	$(PYTEST)

# The tests with nnU-Net in an environment of its own: it needs torchvision, and with it another torch.
test-nnunet: $(NNUNET_VENV)/.installed
	OMP_NUM_THREADS=1 $(NNUNET_VENV)/bin/python -m pytest tests/test_nnunet.py

$(NNUNET_VENV)/.installed: pyproject.toml constraints.txt constraints-nnunet.txt
	$(PYTHON) -m venv $(NNUNET_VENV)
	grep -v '^torch==' constraints.txt > $(NNUNET_VENV)/others.txt
	$(NNUNET_VENV)/bin/python -m pip install -c constraints-nnunet.txt torch torchvision \
		$(if $(TORCH_INDEX),--index-url $(TORCH_INDEX))
	$(NNUNET_VENV)/bin/python -m pip install -c $(NNUNET_VENV)/others.txt -c constraints-nnunet.txt -e '.[nnunet,test]'
	touch $@

lint: $(FOR_TESTS)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Generated pages that are not as their sources say, links to nowhere and missing names are errors.
docs: $(FOR_TESTS)
	OMP_NUM_THREADS=1 $(BIN)/python scripts/make_loss_pages.py --check
	OMP_NUM_THREADS=1 $(BIN)/python scripts/draw_losses.py --check
	$(BIN)/python scripts/make_citing.py --check
	$(BIN)/python scripts/list_licences.py --check
	PYTHONPATH=scripts $(BIN)/zensical build --clean --strict
	$(BIN)/python scripts/check_site.py site

# Needs the network: what is known of the versions of constraints.txt.
audit: $(FOR_TESTS)
	$(BIN)/python scripts/audit.py

bench: $(FOR_TESTS)
	$(BIN)/python benchmarks/bench_losses.py

# Wheel and sdist, as they would be published.
dist: $(FOR_TESTS)
	rm -rf dist
	$(BIN)/python -m build --no-isolation
	$(BIN)/python -m twine check --strict dist/*

clean:
	rm -rf .venv build dist site .cache
