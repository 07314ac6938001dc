"""Both decoders compute what the model computes; the C code compiles, or the error says why not."""

import subprocess
from pathlib import Path
from typing import Any

import hypothesis
import hypothesis.strategies as st
import pytest
import torch

from generating import SHAPES, decode, make_request, random_ids, random_model, run, token_ids
from octavo import native_build, native_library
from octavo.errors import MachineError, OctavoError
from octavo.fused_step import forward_loss
from octavo.generation import native
from octavo.generation.backends import create_decoder
from octavo.generation.decoder import Batch
from octavo.generation.engine import Engine
from octavo.generation.sampling import Sampling
from octavo.generation.torch_decoder import TorchDecoder
from octavo.kernels.weights import check_weights
from octavo.weights import build_model

law = hypothesis.settings(derandomize=True, deadline=None, max_examples=30)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=list(SHAPES))
@pytest.mark.usefixtures("instruction_set")
@pytest.mark.parametrize("use_native", [True, False], ids=["C", "PyTorch"])
def test_cached_decoding_equals_the_full_forward(shape: dict[str, Any], use_native: bool) -> None:
    model = random_model(**shape)
    ids = random_ids(model.settings.block_size, model.settings.vocab_size)
    with torch.no_grad():
        expected = model(torch.tensor([ids]))[0]
    decoder, notices = create_decoder(model, 3, use_native=use_native)
    assert notices == []
    assert isinstance(decoder, native.NativeDecoder) == use_native
    for cuts in ((), tuple(range(1, len(ids))), (1, 6, 15)):
        logits = decode(decoder, ids, 1, cuts)
        assert (logits - expected).abs().max() < 1e-4
        assert torch.equal(logits.argmax(-1), expected.argmax(-1))


@pytest.mark.parametrize("default", [torch.float64, torch.bfloat16, torch.device("meta")], ids=str)
@pytest.mark.parametrize("int8", [False, True], ids=["float32", "int8"])
def test_the_default_type_and_device_of_the_callers_program_change_nothing(
    int8: bool, default: torch.dtype | torch.device
) -> None:
    model = random_model()
    sampling = Sampling(temperature=1.0, presence_penalty=0.5, frequency_penalty=0.1, allowed_token_ids=range(9))
    first, second = (make_request(max_new_tokens=20, sampling=sampling) for _ in range(2))
    quantize = "int8" if int8 else "none"
    [expected] = run(Engine(model, 1, quantize=quantize), first)
    is_dtype = isinstance(default, torch.dtype)
    before = torch.get_default_dtype() if is_dtype else torch.get_default_device()
    set_default: Any = torch.set_default_dtype if is_dtype else torch.set_default_device
    set_default(default)
    try:
        [job] = run(Engine(model, 1, quantize=quantize), second)
    finally:
        set_default(before)
    assert token_ids(job) == token_ids(expected)


def test_weights_that_were_saved_with_strides_are_contiguous_once_loaded(tmp_path: Path) -> None:
    model = random_model()
    weights = dict(model.state_dict())
    for name in ("transformer.wte.weight", "transformer.h.0.mlp.c_fc.weight"):
        weights[name] = weights[name].T.contiguous().T
    weights["transformer.ln_f.weight"] = torch.ones(1).expand(len(weights["transformer.ln_f.weight"]))
    del weights["lm_head.weight"]
    torch.save(weights, tmp_path / "weights.pt")
    loaded = build_model(model.settings, torch.load(tmp_path / "weights.pt"), tmp_path, "config.json")
    check_weights(loaded)
    assert forward_loss(loaded) is not None


def test_a_decoder_keeps_the_memory_of_weights_that_get_another_type() -> None:
    model, ids = random_model(), random_ids(8, 11)
    decoder = native.NativeDecoder(model, 1)
    expected = decode(decoder, ids)
    model.double()
    overwritten = [torch.full_like(parameter, torch.nan, dtype=torch.float32) for parameter in model.parameters()]
    assert torch.equal(decode(decoder, ids), expected)
    assert all(each.isnan().all() for each in overwritten)


def test_little_work_runs_in_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder, threads = native.NativeDecoder(random_model(), 1), []
    monkeypatch.setattr(native, "MIN_WORK_OF_THREADS", 3 * decoder.parameters)
    monkeypatch.setattr("torch.get_num_threads", lambda: 2)
    monkeypatch.setattr(decoder, "_forward", lambda *arguments: threads.append(arguments[-1]))
    for rows in (1, 2, 3, 9):
        batch = Batch()
        batch.add(list(range(rows)), 0, 0, 1)
        decoder.forward(batch)
    assert threads == [1, 1, 2, 2]


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("int8", [False, True], ids=["float32", "int8"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=list(SHAPES))
def test_logits_in_c_are_bit_identical_in_any_chunks_and_batch(shape: dict[str, Any], int8: bool, threads: int) -> None:
    model = random_model(**shape)
    V, T = model.settings.vocab_size, model.settings.block_size
    decoder = native.NativeDecoder(model, 6, int8)
    sequences = [random_ids(T, V, seed) for seed in range(6)]
    expected = [decode(decoder, ids) for ids in sequences]
    threads_before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:

        @law
        @hypothesis.given(st.data())
        def decode_together(data: st.DataObject) -> None:
            lengths = [0] * 6
            for _ in range(4):
                counts = data.draw(st.lists(st.integers(0, 9), min_size=6, max_size=6))
                ends = [min(T, length + count) for length, count in zip(lengths, counts, strict=True)]
                batch = Batch()
                for slot, (start, end) in enumerate(zip(lengths, ends, strict=True)):
                    batch.add(sequences[slot][start:end], slot, start, end - start)
                if batch.ids:
                    logits = decoder.forward(batch)
                    for slot, position, row in zip(batch.slots, batch.positions, logits, strict=True):
                        assert torch.equal(row, expected[slot][position])
                lengths = ends

        decode_together()
    finally:
        torch.set_num_threads(threads_before)


@pytest.mark.usefixtures("instruction_set")
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=list(SHAPES))
def test_a_long_prompt_in_c_has_the_bits_of_rows_that_are_computed_alone(
    shape: dict[str, Any], threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = random_model(**shape)
    V, T = model.settings.vocab_size, model.settings.block_size
    decoder = native.NativeDecoder(model, 7)
    sequences = [random_ids(T, V, seed) for seed in range(7)]
    alone = [decode(decoder, ids, slot, range(1, T)) for slot, ids in enumerate(sequences)]
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(native, "MIN_WORK_OF_THREADS", 0)
    for rows in (64, 65, 79, 7 * T):  # from 64 rows on, the C code computes outer products: see outer_products.h
        batch = Batch()
        for slot, ids in enumerate(sequences):
            count = min(T, rows - len(batch.ids))
            batch.add(ids[:count], slot, 0, count)
        logits = decoder.forward(batch)
        for slot, position, row in zip(batch.slots, batch.positions, logits, strict=True):
            assert torch.equal(row, alone[slot][position])


@pytest.mark.usefixtures("instruction_set")
@pytest.mark.parametrize("shape", ["even", "parts of tiles"])
def test_int8_logits_have_the_same_bits_with_and_without_amx(shape: str) -> None:
    model = random_model(**SHAPES[shape])
    decoder = native.NativeDecoder(model, 1, int8=True)
    ids = random_ids(model.settings.block_size, model.settings.vocab_size)
    use_amx = native_library.load_library().functions.octavo_use_amx
    try:
        logits = []
        for wanted in (0, 1):  # without effect on a processor that does not have it
            use_amx(wanted)
            logits.append(decode(decoder, ids))
    finally:
        use_amx(1)
    assert torch.equal(*logits)


def test_logits_are_those_of_the_requested_rows_in_the_requested_order() -> None:
    model = random_model()
    for use_native in (True, False):
        decoder, _ = create_decoder(model, 2, use_native=use_native)
        ids, slots, positions = [1, 2, 3, 4], [0, 0, 0, 1], [0, 1, 2, 0]
        expected = decoder.forward(Batch(ids, slots, positions, [0, 1, 2, 3]))
        assert torch.allclose(decoder.forward(Batch(ids, slots, positions, [3, 1])), expected[[3, 1]], atol=1e-6)
        assert decoder.forward(Batch(ids, slots, positions, [])).shape == (0, 11)


def test_the_c_decoder_follows_changes_of_the_weights() -> None:
    model = random_model()
    decoder = native.NativeDecoder(model, 1)
    before = decode(decoder, [1, 2, 3])
    with torch.no_grad():
        model.transformer.h[0].attn.c_attn.weight.mul_(0.5)
        model.lm_head.weight.add_(0.1)
        expected = model(torch.tensor([[1, 2, 3]]))[0]
    assert not torch.allclose(before, expected, atol=1e-2)
    assert torch.allclose(decode(decoder, [1, 2, 3]), expected, atol=1e-4)


@pytest.mark.parametrize("int8", [False, True], ids=["as they are", "int8"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_weights_that_are_not_float32_run_in_pytorch_or_are_refused(dtype: torch.dtype, int8: bool) -> None:
    model, ids = random_model().to(dtype), random_ids(20, 11)
    if int8:
        with pytest.raises(OctavoError, match=str(dtype)):
            create_decoder(model, 1, "int8")
        return
    decoder, [notice] = create_decoder(model, 1)
    assert isinstance(decoder, TorchDecoder)
    assert str(dtype) in notice
    with torch.no_grad():
        expected = model(torch.tensor([ids]))[0].float()
    assert (decode(decoder, ids) - expected).abs().max() < (0.2 if dtype == torch.bfloat16 else 0.02)


def test_weights_that_are_not_contiguous_run_in_pytorch() -> None:
    model, ids = random_model(), random_ids(20, 11)
    weight = model.transformer.h[0].attn.c_attn.weight
    weight.data = weight.data.t().contiguous().t()
    decoder, [notice] = create_decoder(model, 1)
    assert isinstance(decoder, TorchDecoder)
    assert "c_attn.weight" in notice
    with torch.no_grad():
        assert (decode(decoder, ids) - model(torch.tensor([ids]))[0]).abs().max() < 1e-4


@pytest.mark.parametrize("use_native", [True, False], ids=["C", "PyTorch"])
def test_too_little_memory_is_a_machine_error(use_native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_model()
    with pytest.raises(MachineError, match="memory"):
        Engine(model, 1 << 36, use_native=use_native)
    engine = Engine(model, 1, use_native=use_native)
    engine.submit(make_request())
    allocate = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *shape, **options: allocate(1 << 46))
    with pytest.raises(MachineError, match="memory"):
        engine.step()


# Compilation


def test_without_a_compiler_notices_say_so_and_the_tokens_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_model()
    [expected] = run(Engine(model, 1, quantize="int8"), make_request())
    native_library.load_library.cache_clear()
    monkeypatch.setenv("OCTAVO_NATIVE", "native")  # which is never prebuilt
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CC", raising=False)
    try:
        engine = Engine(model, 1)
        [notice] = engine.notices
        assert "no C compiler" in notice
        assert "PyTorch" in notice
        assert isinstance(engine.decoder, TorchDecoder)
        int8_engine = Engine(model, 1, quantize="int8")
        assert len(int8_engine.notices) == 2
        assert token_ids(run(int8_engine, make_request())[0]) == token_ids(expected)
    finally:
        native_library.load_library.cache_clear()


def test_the_error_names_a_failing_compiler_which_runs_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken, runs = tmp_path / "broken-cc", tmp_path / "runs"
    script = f"#!/bin/sh\n[ \"$1\" = --version ] && exit 0\necho run >> {runs}\necho 'it broke' >&2\nexit 1\n"
    broken.write_text(script, encoding="utf-8")
    broken.chmod(0o755)
    monkeypatch.setenv("CC", str(broken))
    monkeypatch.setenv("OCTAVO_NATIVE", "native")
    native_library.load_library.cache_clear()
    try:
        counts = []
        for _ in range(2):
            with pytest.raises(
                native_library.UnavailableError, match=r"can't be compiled with .*broken-cc \(it broke\)"
            ):
                native_library.load_library()
            counts.append(runs.read_text(encoding="utf-8").count("run"))
        assert counts[0] == counts[1] > 0
    finally:
        native_library.load_library.cache_clear()


def test_the_c_code_compiles_without_warnings(tmp_path: Path) -> None:
    flags = ["-O1", "-std=gnu11", "-Wall", "-Wextra", "-Wno-psabi"]
    for source in native_build.SOURCES:
        command = ["cc", *flags, "-c", str(source), "-o", str(tmp_path / "object.o")]
        result = subprocess.run(command, capture_output=True, text=True)
        assert (result.returncode, result.stderr) == (0, "")
