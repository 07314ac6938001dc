"""Evaluation during training: exact losses, the best so far, and early stopping."""

import functools
import math
from collections.abc import Callable

from octavo.data.dataset import Dataset
from octavo.device import tf32_matmuls
from octavo.distributed import ALONE, World
from octavo.evaluation import count_bytes
from octavo.loss import StoppedError, split_loss
from octavo.model import GPT
from octavo.settings import Settings
from octavo.training.event import Evaluated


def evaluation_tokens(val_tokens: int) -> int:
    """Tokens of one evaluation: the whole validation split, and up to 32,768 of the training split."""
    return val_tokens + min(val_tokens, 1 << 15)


class Evaluator:
    """Evaluates a model on the whole validation split and on the start of the training split.

    It computes in float32, and on an NVIDIA GPU with TF32 matmuls (`octavo eval` does not use TF32). A sharded model
    that trains on GPUs in bf16 is evaluated in bf16.
    """

    def __init__(self, model: GPT, settings: Settings, data: Dataset, world: World = ALONE) -> None:
        self.model, self.settings, self.world = model, settings, world
        self.val = data.tokens["val"]
        self.tokens_per_evaluation = evaluation_tokens(len(self.val))
        self.train = data.tokens["train"][: self.tokens_per_evaluation - len(self.val)]
        self._tokenizer = data.tokenizer
        self.newest_evaluation: Evaluated | None = None
        self.best_val_loss = math.inf
        self.evaluations_since_best = 0

    @functools.cached_property
    def bytes_per_token(self) -> float:
        """Bytes of text per validation token. Computed in the first evaluation, because it reads the whole split."""
        return max(1, count_bytes(self._tokenizer, self.val[1:])) / (len(self.val) - 1)

    def evaluate(self, step: int, should_stop: Callable[[], bool]) -> Evaluated | None:
        """Evaluate the weights of a step. Returns None, and changes nothing, if `should_stop` returned true."""
        T = self.settings.block_size
        try:
            with tf32_matmuls(self.model.lm_head.weight.device):
                train_loss, val_loss = (
                    split_loss(self.model, split, T, world=self.world, should_stop=should_stop)
                    for split in (self.train, self.val)
                )
        except StoppedError:
            return None
        is_best = val_loss < self.best_val_loss
        self.evaluations_since_best = 0 if is_best else self.evaluations_since_best + 1
        self.best_val_loss = min(self.best_val_loss, val_loss)
        bits_per_byte = val_loss / math.log(2) / self.bytes_per_token
        self.newest_evaluation = Evaluated(step, train_loss, val_loss, bits_per_byte, is_best)
        return self.newest_evaluation

    @property
    def is_out_of_patience(self) -> bool:
        """Whether to stop early: `patience` evaluations in a row did not improve the validation loss."""
        return 0 < self.settings.patience <= self.evaluations_since_best
