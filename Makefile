# Two commands: `make demo`, `make test`. Each sets up what it needs in .venv, without root, once.

PYTHON ?= python3
VENV := .venv
PIP := $(VENV)/bin/python -m pip --disable-pip-version-check
TORCH := torch==2.13.0+cpu
TORCHVISION := torchvision==0.28.0
# TensorRT-RTX builds engines on machines without a GPU; --no-deps, since its dependencies are a torch with CUDA.
TENSORRT := torch-tensorrt-rtx==2.13.0 tensorrt-rtx-cu13-libs==1.7.1.116 tensorrt-rtx-cu13-bindings==1.7.1.116 psutil dllist
# Two processes, each with whole files; the tests of one file share nodes and networks. ARGS="-n 0" for one process.
PYTEST := $(VENV)/bin/python -m pytest -n 2 --dist loadfile

.PHONY: demo test test-all fuzz lint docs clean

demo: $(VENV)/demo.done
	@$(VENV)/bin/python -m fadepth_ros.demo $(ARGS)

test: $(VENV)/test.done
	$(PYTEST) -m 'not slow' $(ARGS)

test-all: $(VENV)/test.done
	$(PYTEST) $(ARGS)

# Damaged messages and files. ARGS="--count 1000000 --seed 1 image" chooses how many, which, and the kind.
fuzz: $(VENV)/test.done
	$(VENV)/bin/python tests/fuzz.py $(ARGS)

# Style, format, spelling and types. mypy reads the types of the installed packages.
lint: $(VENV)/test.done
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/codespell
	$(VENV)/bin/mypy

# The documentation as web pages, in build/docs. First writes the generated tables and the picture of the packages.
docs: $(VENV)/docs.done
	$(VENV)/bin/python docs/parameters.py
	$(VENV)/bin/python docs/settings.py
	$(VENV)/bin/python docs/packages.py
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/python -m mkdocs build --strict $(ARGS)

clean:
	rm -rf $(VENV) build install log demo_output *.egg-info

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "Python 3.10 or newer is needed; set PYTHON=..., this one is $$($(PYTHON) --version)"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || \
	  { rm -rf $(VENV); echo "python3 -m venv failed; on Debian and Ubuntu: sudo apt install python3-venv"; exit 1; }

# The depth node needs neither a ROS 2 installation nor torch: rclpy comes as wheels, the network runs in OpenVINO.
$(VENV)/demo.done: $(VENV)/bin/python setup.py Makefile
	$(PIP) install --quiet --editable '.[ros,cpu,view]'
	@touch $@

# The CPU build of torch: PyPI's own for Linux brings gigabytes of CUDA. timm imports torchvision, of which it needs nothing
# that the build for another torch lacks.
$(VENV)/test.done: $(VENV)/demo.done
	$(PIP) install --quiet '$(TORCH)' || \
	  $(PIP) install --quiet '$(TORCH)' --extra-index-url https://download.pytorch.org/whl/cpu
	$(PIP) install --quiet --no-deps '$(TORCHVISION)'
	$(PIP) install --quiet --editable '.[ros,cpu,view,foxglove,train,adapt,assets,quantize,odometry,cluster,dev]'
	$(PIP) install --quiet --no-deps $(TENSORRT)
	@touch $@

# rclpy, because the table of parameters is read from the node's own code.
$(VENV)/docs.done: $(VENV)/bin/python setup.py Makefile
	$(PIP) install --quiet --editable '.[ros,docs]'
	@touch $@
