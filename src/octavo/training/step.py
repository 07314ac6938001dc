"""One update: forward, backward, gradient clipping, optimizer. A `Trainer` owns the state that an update changes.

Axis letters: `B` sequences in a batch, `T` positions in a sequence, `V` vocabulary.
"""

import contextlib
import dataclasses
import hashlib
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from octavo import estimate, fused_step, kernels
from octavo.checkpoint import TrainerState
from octavo.device import Runtime, is_out_of_memory
from octavo.distributed import ALONE, World
from octavo.errors import MachineError, OctavoError, first_line
from octavo.loss import next_token_loss
from octavo.model import GPT
from octavo.native_library import UnavailableError
from octavo.settings import Settings
from octavo.training import optimizers
from octavo.training.activation_checkpointing import checkpoint_blocks
from octavo.training.bf16_weights import Bf16Weights
from octavo.training.layout import Layout
from octavo.training.schedule import learning_rate
from octavo.training.threads import ThreadControl
from octavo.weights import assemble_model


class Trainer:
    """A model with its optimizers and gradient scaler; `update` trains it on one batch."""

    def __init__(self, model: GPT, settings: Settings, runtime: Runtime, world: World = ALONE, shard: int = 0) -> None:
        """`shard`: how many processes divide the model among them; 0: each has all of it."""
        if runtime.device.type == "cpu" and settings.checkpoint_activations:
            kernels.return_freed_memory()
        elif runtime.device.type == "cpu":
            kernels.keep_freed_memory()
        self.model, self.settings, self.runtime, self.world = model, settings, runtime, world
        self.shard, self.layout = shard, _place_model(model, runtime, world, shard)
        self.optimizers = optimizers.build_optimizers(self.layout, settings, runtime.precision)
        self.scaler = runtime.grad_scaler()
        own = dataclasses.replace(settings, batch_size=settings.batch_size // world.size)  # of this process
        self.micro_batch = settings.micro_batch or min(
            world.all_gather_object(auto_micro_batch(own, runtime, self.layout.parts))
        )
        self.step = 0  # updates so far
        self.learning_rate_scale = 1.0  # below 1 after a rollback
        self.notices: list[str] = []  # until `take_notices`
        if self.is_sharded and runtime.stores_bf16:
            self.notices.append("a sharded model is evaluated in bf16 here; `octavo eval RUN` computes in float32")
        self.bf16_weights = Bf16Weights(model) if runtime.stores_bf16 and not self.is_sharded else None
        if settings.checkpoint_activations:
            checkpoint_blocks(self.bf16_weights.model if self.bf16_weights else model, runtime.device)
        self._loss_function, self.compiled = self._loss, runtime.compile
        if runtime.compile and not self.is_sharded:
            try:
                self._loss_function = torch.compile(self._loss)
            except RuntimeError as error:  # this Python version or system has no compiler at all
                self._give_up_compiling(error)
        self.fused_step = self._create_fused_step()
        # Several processes would disagree on the number of threads, and wait for each other.
        self.threads = ThreadControl() if self.fused_step and world.size == 1 else None

    def update(self, batch: np.ndarray) -> tuple[Tensor, Tensor]:
        """Make one update from ids (B, T + 1). Return the batch's mean loss and the gradient norm before clipping.

        With several processes, each passes its rows of the batch, and all return the same. Both numbers are still on
        the device, which may be computing them.
        """
        loss, grad_norm = self.compute_gradients(batch), self.clip_gradients()
        self.apply_gradients(grad_norm)
        self.end_step()
        return loss, grad_norm

    def compute_gradients(self, batch: np.ndarray) -> Tensor:
        """First part of an update: compute the gradients of the batch's mean loss, and return the loss.

        If memory runs out, start again with half the micro-batch; the batch size does not change. With several
        processes, each computes the gradients of its rows. The gradients are then added up.
        """
        with self.threads or contextlib.nullcontext():
            loss = self._compute_own_gradients(batch)
        self.layout.exchange(loss)
        return loss

    def _compute_own_gradients(self, batch: np.ndarray) -> Tensor:
        if not self.model.training:
            self.model.train()
        if self.bf16_weights:
            self.bf16_weights.refresh()
        if self.fused_step:
            self.fused_step.refresh()
        while True:
            try:
                # The replacements of `fast_path` are for autograd; in the fused step they would only cost time.
                with contextlib.nullcontext() if self.fused_step else kernels.fast_path(self.runtime.device):
                    return self._accumulate_gradients(batch)
            except RuntimeError as error:
                self.layout.clear_gradients()
                if self.bf16_weights:
                    self.bf16_weights.model.zero_grad()
                if self.fused_step:
                    self.fused_step.free_memory()
                if self.is_sharded:  # the other processes are in the middle of the model and wait for this one
                    self._raise_sharded_error(error)
                elif is_out_of_memory(error):
                    self._halve_micro_batch(error)
                elif self.compiled and is_compile_failure(error):
                    self._give_up_compiling(error)
                else:
                    raise

    def clip_gradients(self) -> Tensor:
        """Second part of an update: clip the gradients, and return their norm before that."""
        with self._optimizer_path():
            for optimizer in self.optimizers:
                self.scaler.unscale_(optimizer)
            grad_norm = self.layout.gradient_norm()
            limit = self.settings.grad_clip or torch.inf
            # Within the limit there is nothing to scale. A GPU scales in any case: reading the norm would wait for it.
            if self.runtime.device.type == "cpu" and limit / (grad_norm + 1e-6) >= 1:
                return grad_norm
            torch.nn.utils.clip_grads_with_norm_(self.layout.parameters.values(), limit, grad_norm, foreach=True)
            return grad_norm

    def apply_gradients(self, grad_norm: Tensor) -> None:
        """Third part of an update: step the optimizers. `grad_norm` is what `clip_gradients` returned."""
        rate = self._learning_rate(self.step)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate * group["lr_scale"]
        # If fp16 overflowed, no optimizer may step: not even one whose own gradients are finite.
        if not self.scaler.is_enabled() or grad_norm.isfinite():
            with self._optimizer_path():
                for optimizer in self.optimizers:
                    self.scaler.step(optimizer)

    def end_step(self) -> None:
        """Last part of an update: clear the gradients and count the step, whether they were applied or not."""
        self.scaler.update()
        self.layout.clear_gradients()
        self.step += 1

    @property
    def is_sharded(self) -> bool:
        return self.shard > 0

    @property
    def learning_rate(self) -> float:
        """Of the newest update; 0 before the first one."""
        return self._learning_rate(self.step - 1) if self.step else 0.0

    @property
    def tokens_per_step(self) -> int:
        return self.settings.batch_size * self.settings.block_size

    @property
    def tokens(self) -> int:
        """Tokens trained on so far."""
        return self.step * self.tokens_per_step

    def take_notices(self) -> list[str]:
        """Return the notices since the last call: fallbacks, such as a smaller micro-batch, and fewer threads."""
        notices, self.notices = self.notices, []
        if self.threads:
            notices += self.threads.take_notices()
        return notices

    def check_replicas(self) -> None:
        """Compare the weights of processes that should have the same ones. Raises `MachineError` if they differ.

        They make the same updates, but two processors of different kinds may round differently.
        """
        if self.world.size == self.layout.parts:
            return
        parameters = self.layout.parameters.values()
        checksums = self.world.all_gather_object(
            sum(int(p.detach().view(torch.int32).sum(dtype=torch.int64)) for p in parameters)
        )
        # Each group of `layout.parts` processes has one copy of the model, divided in the same way.
        expected = [rank % self.layout.parts for rank in range(self.world.size)]
        different = [rank for rank, same in enumerate(expected) if checksums[rank] != checksums[same]]
        if different:
            pairs = [f"process {rank} has other weights than process {expected[rank]}" for rank in different]
            raise MachineError(
                f"after step {self.step} {', '.join(pairs)}", "machines of one kind, with the same version of PyTorch"
            )

    def tensors(self, state: TrainerState | None = None) -> Iterator[tuple[str, Tensor]]:
        """Yield whole tensors by name: the weights and those of a state. All processes must iterate to the end."""
        return self.layout.gather(self.layout.parameters | ({} if state is None else state.tensors))

    def whole_model(self) -> GPT:
        """The model with all its weights: itself, or, if it is sharded, a copy that all processes make together."""
        if not self.is_sharded:
            return self.model
        with self.gathering():
            weights = {name: value.detach().cpu() for name, value in self.tensors()}
        return assemble_model(self.settings, weights)

    @contextlib.contextmanager
    def gathering(self) -> Iterator[None]:
        """Raise a `MachineError` if memory runs out while a sharded model is gathered."""
        try:
            yield
        except RuntimeError as error:
            if not self.is_sharded or not is_out_of_memory(error):
                raise
            raise MachineError(
                f"there is too little memory to gather the {estimate.parameters(self.settings):,} parameters of the "
                "sharded model for a checkpoint or a sample",
                "more main memory for rank 0: 12 bytes for each parameter with AdamW, 8 with Muon",
            ) from error

    def load_weights(self, model: GPT) -> None:
        """Set the weights to those of another model."""
        self.layout.load(dict(model.named_parameters()))

    def state(self) -> TrainerState:
        """What `restore` needs to resume bit for bit. If the model is sharded, this process's part of each tensor."""
        values = {
            "step": self.step,
            "device": str(self.runtime.device),
            "precision": self.runtime.precision,
            "compile": "on" if self.runtime.compile else "off",
            "micro_batch": self.micro_batch,
            "threads": self.threads.max_threads if self.threads else torch.get_num_threads(),
            "fused": self.fused_step is not None,
            "torch": str(torch.__version__),
            "scaler": self.scaler.state_dict(),
        }
        return TrainerState(optimizers.state_tensors(self.optimizers, self.layout), values)

    def load_optimizer_state(self, tensors: dict[str, Tensor]) -> None:
        """Replace the optimizers' state by whole tensors, named as in a checkpoint."""
        optimizers.load_state_tensors(self.optimizers, self.layout, tensors)

    def restore(self, state: TrainerState) -> None:
        """Restore everything but the model's weights, which are loaded already."""
        self.layout.clear_gradients()
        for optimizer in self.optimizers:
            optimizer.state.clear()  # the state of step 0 has no tensors that would replace it
        self.load_optimizer_state(state.tensors)
        self.scaler = self.runtime.grad_scaler()  # a new one, since the old one may be in the middle of an update
        if self.scaler.is_enabled() and state.values["scaler"]:  # empty if the run had another precision before
            self.scaler.load_state_dict(state.values["scaler"])
        self.step = state.values["step"]
        if not self.settings.micro_batch and state.values["device"].partition(":")[0] == self.runtime.device.type:
            self.micro_batch = state.values["micro_batch"]  # that of another kind of device does not apply
        is_fused = self.fused_step is not None
        if state.values.get("fused", is_fused) != is_fused:
            change = "with the C code, unlike before" if is_fused else "without the C code, unlike before"
            self.notices.append(f"steps run {change}: losses may differ in the last digits")

    def _accumulate_gradients(self, batch: np.ndarray) -> Tensor:
        """Gradient accumulation: one backward per micro-batch. Returns the batch's mean loss.

        Several processes divide their losses by the number of targets in the whole batch. So the losses that they
        return add up to the mean loss, and their gradients to its gradients.
        """
        T = batch.shape[1] - 1
        rows_before, rows_of_all = self.world.rank * len(batch), self.world.size * len(batch)
        rows = self.micro_batch * (self.settings.block_size // T)
        # Sequences shorter than block_size start at a random position, a different one in each step, so that every row
        # of the position table is trained.
        start = _hash(self.settings.seed, self.step, "position") % (self.settings.block_size - T + 1)
        total = torch.zeros((), device=self.runtime.device)
        for first in range(0, len(batch), rows):
            ids = self.runtime.move(torch.from_numpy(batch[first : first + rows]))
            if self.fused_step:
                seed, scale = _hash(self.settings.seed, self.step, "dropout"), 1 / (rows_of_all * T)
                total += scale * self.fused_step.accumulate_gradients(ids, start, scale, seed, rows_before + first)
                continue
            if self.settings.dropout or self.settings.attention_dropout:
                # PyTorch's dropout takes no generator, so each micro-batch seeds the global one.
                torch.manual_seed(_hash(self.settings.seed, self.step, rows_before + first))
            with self._autocast():
                loss = self._loss_function(ids, start) / (rows_of_all * T)
            self.scaler.scale(loss).backward()
            if self.bf16_weights:
                self.bf16_weights.accumulate_master_gradients()
            total += loss.detach()
        return total

    def _loss(self, ids: Tensor, start: int = 0) -> Tensor:
        """The summed loss over ids (B, T + 1), the first of them at position `start`."""
        model = self.bf16_weights.model if self.bf16_weights else self.model
        logits = model(ids[:, :-1], start=start)[..., : self.settings.vocab_size]  # (B, T, V)
        return next_token_loss(logits, ids[:, 1:])

    def _learning_rate(self, step: int) -> float:
        return learning_rate(step, self.settings) * self.learning_rate_scale

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        """What the forward runs under: nothing if the weights that it uses are stored in bf16."""
        has_bf16 = self.bf16_weights is not None or (self.is_sharded and self.runtime.stores_bf16)
        return contextlib.nullcontext() if has_bf16 else self.runtime.autocast()

    @contextlib.contextmanager
    def _optimizer_path(self) -> Iterator[None]:
        """Run optimizers with the faster matmuls of `kernels.fast_path`. Raise a `MachineError` if memory runs out.

        The other replacements of `fast_path` are for the model. Here they would only slow down every call of PyTorch by
        some microseconds.
        """
        try:
            with kernels.onednn_matmuls if self.runtime.device.type == "cpu" else contextlib.nullcontext():
                yield
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            raise MachineError(
                f"an optimizer step of {estimate.parameters(self.settings):,} parameters does not fit into the memory "
                f"of {self.runtime.name}",
                "a smaller --n-embd or --n-layer",
            ) from error

    def _halve_micro_batch(self, error: RuntimeError) -> None:
        if self.micro_batch == 1:
            raise MachineError(
                f"one sequence of {self.settings.block_size} tokens does not fit into the memory of "
                f"{self.runtime.name}",
                "a smaller --block-size, --n-embd or --n-layer",
            ) from error
        self.micro_batch = max(1, min(self.micro_batch, self.settings.batch_size) // 2)
        if self.runtime.device.type == "cuda":
            torch.cuda.empty_cache()
        self.notices.append(f"out of memory: micro-batch {self.micro_batch} from here on, the batch stays the same")

    def _raise_sharded_error(self, error: RuntimeError) -> None:
        """Raise an error with a hint, after the forward or backward of a sharded model has failed."""
        if is_out_of_memory(error):
            hint = f"--micro-batch {max(1, self.micro_batch // 2)}, or more processes"
            raise MachineError(f"micro-batch {self.micro_batch} does not fit into memory", hint) from error
        if self.compiled and is_compile_failure(error):
            raise OctavoError(f"torch.compile failed: {first_line(error)}", "--compile off") from error
        raise error

    def _create_fused_step(self) -> fused_step.FusedStep | None:
        """The fast path of a CPU, or None where autograd computes the gradients."""
        on_cpu = self.runtime.device.type == "cpu" and not self.runtime.compile and self.runtime.precision != "fp16"
        needs_autograd = self.is_sharded or self.settings.checkpoint_activations
        if not on_cpu or needs_autograd or not fused_step.is_supported(self.settings) or not fused_step.is_faster():
            return None
        try:
            step = fused_step.FusedStep(self.model, bf16=self.runtime.precision == "bf16")
        except UnavailableError as error:
            self.notices.append(f"{error}; steps run in PyTorch alone, and take 1.1 to 2.3 times as long")
            return None
        self.notices += step.notices
        return step

    def _give_up_compiling(self, error: RuntimeError) -> None:
        self._loss_function, self.compiled = self._loss, False
        self.notices.append(f"torch.compile failed, so steps run uncompiled: {first_line(error)}")


def _place_model(model: GPT, runtime: Runtime, world: World, shard: int) -> Layout:
    """Move a model to the device: all of it, or this process's part. Returns its layout."""
    if not shard:
        return Layout(dict(model.to(runtime.device).named_parameters()), world)
    from octavo.training.sharding import Sharded  # imports torch.distributed

    return Sharded(model, world, shard, runtime)


def is_compile_failure(error: RuntimeError) -> bool:
    """Whether torch.compile failed, rather than the model it compiles."""
    # Imported here, since they import the whole compiler; after torch.compile they cost nothing.
    import torch._dynamo.exc as dynamo
    import torch._inductor.exc as inductor

    # Inductor wraps most failures of its backend in an InductorError, which is a TorchDynamoException. The other
    # classes below may be raised unwrapped when the backward is compiled.
    return isinstance(
        error,
        dynamo.TorchDynamoException
        | inductor.OperatorIssue
        | inductor.SubgraphLoweringException
        | inductor.InvalidCxxCompiler
        | inductor.CppCompileError
        | inductor.CppWrapperCodegenError,
    )


def auto_micro_batch(settings: Settings, runtime: Runtime, parts: int = 1) -> int:
    """How many sequences fit into memory at once, evened out so that all micro-batches of a batch are about equal.

    `parts`: among how many processes the model is divided.
    """
    budget = runtime.activation_budget
    if runtime.device.type == "cuda":  # float32 weights, gradients and the optimizer's state must fit too
        budget -= 16 * estimate.parameters(settings) // parts
    sequences = max(1, budget // sum(estimate.bytes_per_sequence(settings, runtime.device.type, runtime.precision)))
    micro_batches = math.ceil(settings.batch_size / sequences)
    if runtime.compile:  # torch.compile would compile a last, smaller micro-batch too
        most = min(2 * micro_batches, settings.batch_size)
        equal = [count for count in range(micro_batches, most + 1) if settings.batch_size % count == 0]
        micro_batches = equal[0] if equal else micro_batches
    return math.ceil(settings.batch_size / micro_batches)


def _hash(seed: int, step: int, purpose: object) -> int:
    """A number from 0 to 2**63 - 1 that depends on nothing but the arguments."""
    digest = hashlib.blake2b(f"{seed} {step} {purpose}".encode(), digest_size=8).digest()
    return int.from_bytes(digest) >> 1
