"""One update: forward, backward, clip, optimizer. All that changes in training lives in a `Trainer`.

The axis letters: `B` sequences in a batch, `T` positions in a sequence.
"""

import contextlib
import hashlib
import math

import numpy as np
import torch
from torch import Tensor

from octavo import estimate, kernels
from octavo.checkpoint import TrainerState
from octavo.device import Runtime, is_out_of_memory
from octavo.errors import OctavoError
from octavo.loss import next_token_loss
from octavo.model import GPT
from octavo.settings import Settings
from octavo.training import optimizers
from octavo.training.bf16_weights import Bf16Weights
from octavo.training.schedule import learning_rate


class Trainer:
    """A model and its optimizer, moved one step at a time over batches that are given."""

    def __init__(self, model: GPT, settings: Settings, runtime: Runtime) -> None:
        if runtime.device.type == "cpu":
            kernels.keep_freed_memory()
        self.model, self.settings, self.runtime = model, settings, runtime
        self.optimizers = optimizers.build(model, settings, runtime.precision)
        self.scaler = runtime.grad_scaler()
        self.micro_batch = settings.micro_batch or auto_micro_batch(settings, runtime)
        self.step = 0
        self.learning_rate = 0.0  # of the newest update
        self.notices: list[str] = []  # what `update` had to change; whoever calls it tells and clears them
        # A GPU computes with a bf16 copy; elsewhere the model itself is called, under autocast.
        self.bf16_weights = (
            Bf16Weights(model) if runtime.device.type == "cuda" and runtime.precision == "bf16" else None
        )
        self._forward, self._compiling = self._loss, runtime.compile
        if runtime.compile:
            try:
                self._forward = torch.compile(self._loss)
            except RuntimeError as error:  # a Python or a system that it doesn't know
                self._give_up_compiling(error)

    @property
    def compiled(self) -> bool:
        """Whether steps run compiled: asked for, and not given up."""
        return self._compiling

    def update(self, batch: np.ndarray) -> tuple[Tensor, Tensor]:
        """Make one update from ids (B, T + 1); give the batch's mean loss and the gradient's norm, unsynchronised.

        Out of memory, the micro-batch is halved and the step begun anew: the batch stays what it was.
        """
        return self.compute_gradients(batch), self.apply_gradients()

    def compute_gradients(self, batch: np.ndarray) -> Tensor:
        """The first half of an update: gradients of the batch's mean loss, however many attempts it takes; the loss."""
        self.model.train()
        if self.bf16_weights:
            self.bf16_weights.refresh()
        while True:
            try:
                with kernels.fast_path(self.runtime.device):
                    return self._accumulate(batch)
            except RuntimeError as error:
                self.model.zero_grad()
                if self.bf16_weights:
                    self.bf16_weights.model.zero_grad()
                if is_out_of_memory(error):
                    self._halve(error)
                elif self._compiling:
                    self._give_up_compiling(error)
                else:
                    raise

    def apply_gradients(self) -> Tensor:
        """The second half: clip the gradients and let the optimizers use them; their norm."""
        self.learning_rate = learning_rate(self.step, self.settings)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self.learning_rate * group["scale"]
        try:
            with kernels.fast_path(self.runtime.device):
                norm = self._clipped_and_used()
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise self._too_large() from error
            raise
        self.model.zero_grad()
        self.step += 1
        return norm

    def _clipped_and_used(self) -> Tensor:
        for optimizer in self.optimizers:
            self.scaler.unscale_(optimizer)  # type: ignore[arg-type]  # any with param_groups and step
        limit = self.settings.grad_clip or torch.inf
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), limit, foreach=True)
        if not self.scaler.is_enabled() or norm.isfinite():  # fp16 overflowed: no optimizer may use any of it
            for optimizer in self.optimizers:
                self.scaler.step(optimizer)  # type: ignore[arg-type]
        self.scaler.update()
        return norm

    def _accumulate(self, batch: np.ndarray) -> Tensor:
        """Gradients of the batch's mean loss, a micro-batch at a time; the loss."""
        T = batch.shape[1] - 1
        rows = self.micro_batch * (self.settings.block_size // T)
        # Short windows stand at a place of their own in each step, so that all positions are learned.
        start = _hashed(self.settings.seed, self.step, "position") % (self.settings.block_size - T + 1)
        total = torch.zeros((), device=self.runtime.device)
        for first in range(0, len(batch), rows):
            ids = self.runtime.move(torch.from_numpy(batch[first : first + rows]))
            if self.settings.dropout or self.settings.attention_dropout:
                # PyTorch's dropout takes no generator, so the global one is set to what this micro-batch is due.
                torch.manual_seed(_hashed(self.settings.seed, self.step, first))
            with self.runtime.autocast() if self.bf16_weights is None else contextlib.nullcontext():
                loss = self._forward(ids, start) / (len(batch) * T)
            self.scaler.scale(loss).backward()
            if self.bf16_weights:
                self.bf16_weights.accumulate_into_master_weights()
            total += loss.detach()
        return total

    def _loss(self, ids: Tensor, start: int = 0) -> Tensor:
        """The summed loss over ids (B, T + 1), the first of them at position `start`."""
        model = self.bf16_weights.model if self.bf16_weights else self.model
        x = model.embed(ids[:, :-1], start)  # (B, T, C)
        logits = model.unembed(model.norm(model.blocks(x)))[..., : self.settings.vocab_size]  # (B, T, V)
        return next_token_loss(logits, ids[:, 1:])

    def _halve(self, error: RuntimeError) -> None:
        if self.micro_batch == 1:
            raise self._too_large() from error
        self.micro_batch = max(1, min(self.micro_batch, self.settings.batch_size) // 2)
        if self.runtime.device.type == "cuda":
            torch.cuda.empty_cache()
        self.notices.append(f"out of memory: {self.micro_batch} sequences at once from here, the batch stays the same")

    def _too_large(self) -> OctavoError:
        what = f"one sequence of {self.settings.block_size} tokens does not fit into the memory of {self.runtime.name}"
        return OctavoError(what, "a smaller --block-size, --n-embd or --n-layer")

    def _give_up_compiling(self, error: RuntimeError) -> None:
        self._forward, self._compiling = self._loss, False
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        self.notices.append(f"torch.compile failed, so steps run uncompiled: {reason}")

    def state(self) -> TrainerState:
        """What `restore` needs to go on with the same bits."""
        values = {
            "step": self.step,
            "device": str(self.runtime.device),
            "precision": self.runtime.precision,
            "compile": "on" if self.runtime.compile else "off",
            "micro_batch": self.micro_batch,
            "threads": torch.get_num_threads(),
            "torch": str(torch.__version__),
            "scaler": self.scaler.state_dict(),
        }
        return TrainerState(optimizers.state_tensors(self.optimizers, self.model), values)

    def restore(self, state: TrainerState) -> None:
        """Go on from where `state` was taken; the model's weights are loaded already."""
        optimizers.load_state_tensors(self.optimizers, self.model, state.tensors)
        self.scaler.load_state_dict(state.values["scaler"])
        self.step = state.values["step"]
        self.micro_batch = self.settings.micro_batch or state.values["micro_batch"]


def _hashed(seed: int, step: int, what: object) -> int:
    """A number that depends on nothing else, from 0 to 2**63 - 1."""
    digest = hashlib.blake2b(f"{seed} {step} {what}".encode(), digest_size=8).digest()
    return int.from_bytes(digest) >> 1


def auto_micro_batch(settings: Settings, place: Runtime) -> int:
    """Sequences at once whose activations and logits fit; the batch is cut into that many or a little fewer.

    Weights, gradients and the optimizer's averages must fit besides.
    """
    room = place.activation_budget - (16 * estimate.parameters(settings) if place.device.type == "cuda" else 0)
    held = max(1, room // sum(estimate.bytes_per_sequence(settings, place.device.type, place.precision)))
    parts = math.ceil(settings.batch_size / held)
    return math.ceil(settings.batch_size / parts)
