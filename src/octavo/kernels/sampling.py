"""Sampling one token of a large vocabulary in C: calls of sampling.c, which `native_library` loads.

Equal to `top_tokens` and `run_race` of `octavo.generation.sampling`, but faster: the k largest logits are found without
dividing all of them by the temperature, and of the random bits that PyTorch draws for every token of the vocabulary,
only those of the tokens that can be sampled are computed.

Axis letters: `V` vocabulary, `K` tokens that can be sampled.
"""

import ctypes
import functools

import numpy as np
import torch
from torch import Tensor

from octavo.native_library import UnavailableError, load_library

_STATE_BYTES = 5056  # of a generator on a CPU
_pointer, _long = ctypes.c_void_p, ctypes.c_int64


class SamplingKernels:
    """The functions of sampling.c."""

    def __init__(self, functions: ctypes.CDLL) -> None:
        self._top_tokens, self._run_race = functions.octavo_top_tokens, functions.octavo_run_race
        self._top_tokens.argtypes = (_pointer, _long, ctypes.c_float, _long, _pointer, _pointer)
        self._run_race.argtypes = (_pointer, _long, _pointer, _long, _pointer)
        self._top_tokens.restype = self._run_race.restype = _long
        self._knows_state = self._draws_what_pytorch_draws()

    def top_tokens(self, logits: Tensor, temperature: float, k: int) -> tuple[np.ndarray, Tensor]:
        """The ids, ascending, and the values of the k largest of float32 logits (V,), divided by the temperature."""
        logits, V = logits.contiguous(), len(logits)
        ids, values = np.empty(V, np.int64), np.empty(V, np.float32)
        K = self._top_tokens(logits.data_ptr(), V, temperature, k, ids.ctypes.data, values.ctypes.data)
        return ids[:K], torch.from_numpy(values[:K])

    def run_race(self, probs: Tensor, generator: torch.Generator | None, V: int, ids: np.ndarray | None) -> int | None:
        """Draw random bits for V tokens. Return the index of the token that wins an exponential race.

        The float32 probabilities (K,) are those of the tokens `ids`, or of all if that is None. Returns None, and draws
        nothing, if the generator's state is another than that of the PyTorch for which this was written. Also for the
        default generator: other threads may draw from it between the two operations on its state.
        """
        if generator is None or not self._knows_state:
            return None
        state, probs = generator.get_state(), probs.contiguous()
        if len(state) != _STATE_BYTES:
            return None
        ids_pointer = None if ids is None else ids.ctypes.data
        winner = self._run_race(state.data_ptr(), V, ids_pointer, len(probs), probs.data_ptr())
        if winner < 0:
            return None
        generator.set_state(state)
        return int(winner)

    def _draws_what_pytorch_draws(self) -> bool:
        """Whether races among equal probabilities have the winners and final states that PyTorch's random bits give.

        The state is private to PyTorch. From a new generator, and from different places in a block of 624 words.
        """
        V, self._knows_state = 700, True
        for words in (0, 1, 300, 622, 623, 624, 1001):
            ours, theirs = torch.Generator().manual_seed(words), torch.Generator().manual_seed(words)
            for generator in (ours, theirs):
                torch.empty(words, dtype=torch.int32, device="cpu").random_(generator=generator)
            bits = torch.empty(V, dtype=torch.int64, device="cpu").random_(-(2**63), None, generator=theirs)
            winner = self.run_race(torch.from_numpy(np.full(V, 1 / V, np.float32)), ours, V, ids=None)
            if winner != int((bits & (2**53 - 1)).argmin()) or not torch.equal(ours.get_state(), theirs.get_state()):
                return False
        return True


@functools.cache
def load_sampling_kernels() -> SamplingKernels | None:
    """The functions of sampling.c, or None if the C code can't be used."""
    try:
        return SamplingKernels(load_library().functions)
    except UnavailableError:  # where the decoder in C could run too, it says why
        return None
