# Two commands: `make demo` (DATA=folder for your own data, LOSS, EPOCHS, OUT) and `make test`.
# TORCH_INDEX=https://download.pytorch.org/whl/cpu (say) takes PyTorch from another index.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
FOR_DEMO := $(VENV)/.installed_bundle
FOR_TESTS := $(VENV)/.installed_dev
TORCH_INDEX ?=
LOSS ?= dice_ce
# Two processes of one thread each use two cores better than one process of two threads.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

.PHONY: demo test test-all lint bench clean

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

lint: $(FOR_TESTS)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(FOR_TESTS)
	$(BIN)/python benchmarks/bench_losses.py

clean:
	rm -rf .venv build dist
