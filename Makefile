# Two commands: `make train` and `make test`. The rest is for those who work on Octavo.

.PHONY: train test coverage torture mutants lint bench clients transformers clean

train:            ## train the tiny preset on the built-in corpus, and sample from it
	@scripts/install
	@.venv/bin/octavo train pydocs --preset tiny

test:             ## the whole test suite
	@scripts/install test
	@OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

coverage:         ## the test suite with branch coverage, which must be 90%
	@scripts/install test
	@OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --cov --cov-report=term-missing

lint:             ## what CI checks besides the tests
	@scripts/install test
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

torture:          ## hundreds of kills and failing system calls (one to two hours); the result is in docs/reliability.md
	@scripts/install test
	@rm -f build/torture.jsonl
	@OMP_NUM_THREADS=1 OCTAVO_TORTURE=1 .venv/bin/python -m pytest -n 2 tests/reliability tests/test_tokenizer_json.py tests/test_shards.py
	@.venv/bin/python scripts/torture_table.py

mutants:          ## mutation testing of checkpoint, runs, sampler and sampling: list the changes that no test notices (about half an hour); MUTANTS='octavo.runs.*' PROCESSES=1
	@scripts/install test
	@.venv/bin/python -m pip install --quiet mutmut==3.8.1
	@rm -rf mutants
	@mkdir -p mutants/src build  # Python ignores a folder of PYTHONPATH that does not exist when it starts
	@OMP_NUM_THREADS=1 OCTAVO_TEST_CACHE=$(CURDIR)/build/native PYTHONPATH=$(CURDIR)/mutants/src .venv/bin/python scripts/mutants.py --processes $(or $(PROCESSES),2) $(MUTANTS)

bench:            ## figures for docs/speed.md; NANOGPT=path to a checkout of nanoGPT, TEXTS=two texts of your own, PEERS=a Python with the peers
	@test -d "$(NANOGPT)" || { echo "error: no checkout of nanoGPT at '$(NANOGPT)'"; echo "  try: make bench NANOGPT=PATH"; exit 2; } >&2
	@scripts/install test
	.venv/bin/python bench/encoding.py
	.venv/bin/python bench/preparation.py --nanogpt $(NANOGPT) --texts $(TEXTS)
	.venv/bin/python bench/startup.py
	.venv/bin/python bench/opening.py
	.venv/bin/python bench/overhead.py
	.venv/bin/python bench/estimates.py
	.venv/bin/python bench/parity.py
	.venv/bin/python bench/interop_nanogpt.py --nanogpt $(NANOGPT)
	.venv/bin/python bench/against_nanogpt.py --nanogpt $(NANOGPT) --texts $(TEXTS)
	.venv/bin/python bench/kernels.py
	.venv/bin/octavo bench serve --preset nanogpt-baby
	.venv/bin/python bench/against_peers.py --nanogpt $(NANOGPT) --peers-python $(or $(PEERS),.venv/bin/python)

clients:          ## OpenAI's clients and others against a server, each in a separate environment; the result is in docs/serve.md
	@scripts/install test
	.venv/bin/python bench/clients/run.py

transformers:     ## a checkpoint's folder in transformers 4.46, 4.57 and the pinned version; the result is in docs/interop.md
	@scripts/install test
	.venv/bin/python bench/transformers_versions.py

clean:            ## the environment, caches and prebuilt libraries; runs/ stays
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .coverage* mutants build src/*.egg-info src/octavo/kernels/prebuilt-*
