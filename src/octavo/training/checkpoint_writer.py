"""Writes checkpoints in a thread while training continues.

The weights and the trainer's state are copied between two steps; a thread writes the copy. One checkpoint is written
at a time. The copy is kept and reused: it takes as much memory as the weights and the optimizer's state
(`octavo.estimate.memory` counts it). `recorder` decides what follows from a failed write.
"""

import dataclasses
import threading
import warnings
from collections.abc import Callable, Iterable
from types import TracebackType

import torch
from torch import Tensor

from octavo.checkpoint import TrainerState
from octavo.errors import OctavoWarning
from octavo.model import GPT
from octavo.settings import ModelSettings
from octavo.training.event import Notice, Saved
from octavo.weights import assemble_model, meta_model

# Writes a model and a trainer's state. Returns `Saved`, a `Notice` if it failed, or None if there is nothing to report.
Write = Callable[[GPT, TrainerState | None], Saved | Notice | None]


class CheckpointWriter:
    """Writes one checkpoint at a time. As a context manager, it waits at the end until that checkpoint is written."""

    def __init__(self) -> None:
        self._copies: dict[str, Tensor] = {}
        self._model: GPT | None = None  # its parameters are tensors of `_copies`
        self._thread: threading.Thread | None = None
        self._result: Saved | Notice | None = None
        self._error: BaseException | None = None

    def __enter__(self) -> "CheckpointWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._thread is None:
            return
        # The run may end with an error while a checkpoint is being written. If writing fails too, that is a warning.
        try:
            result = self.wait_result()
        except Exception as write_error:
            warnings.warn(f"no checkpoint: {write_error}", OctavoWarning, stacklevel=2)
        else:
            if isinstance(result, Notice):
                warnings.warn(result.text, OctavoWarning, stacklevel=2)

    def copy(self, tensors: Iterable[tuple[str, Tensor]]) -> None:
        """Copy the tensors of a checkpoint by name, one after the other, into main memory.

        The result of the previous write must have been taken. Raises a `RuntimeError` if there is no memory for a copy.
        """
        assert self._thread is None
        is_on_gpu = False
        try:
            for name, value in tensors:
                self._copy(name, value)
                is_on_gpu |= value.is_cuda
        except RuntimeError:  # no memory: the rest of training needs what was allocated
            self._copies.clear()
            self._model = None
            raise
        if is_on_gpu:
            torch.cuda.synchronize()

    def start(self, settings: ModelSettings, state: TrainerState | None, write: Write) -> None:
        """Call `write` in a thread, with a model and a trainer's state (or None) whose tensors are the copies."""
        if self._model is None:
            names = [name for name, _ in meta_model(settings).named_parameters()]
            self._model = assemble_model(settings, {name: self._copies[name] for name in names}).requires_grad_(False)
        if state is not None:
            state = dataclasses.replace(state, tensors={name: self._copies[name] for name in state.tensors})
        # A daemon thread: if the disk hangs, another Ctrl-C can still end the process.
        self._thread = threading.Thread(target=self._run, args=(write, self._model, state), daemon=True)
        self._thread.start()

    @property
    def is_writing(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def take_result(self) -> Saved | Notice | None:
        """The result of a write that has ended since the last call, or None. Raises what `write` raised."""
        return None if self.is_writing else self.wait_result()

    def wait_result(self) -> Saved | Notice | None:
        """Wait until nothing is being written. Then return or raise what `take_result` would."""
        if self._thread is None:
            return None
        self._thread.join()
        result, error = self._result, self._error
        self._thread = self._result = self._error = None
        if error is not None:
            raise error
        return result

    def _copy(self, name: str, value: Tensor) -> None:
        """Copy a tensor into main memory, into the tensor that holds its previous copy if there is one."""
        if name not in self._copies:
            self._copies[name] = torch.empty(value.shape, dtype=value.dtype, pin_memory=value.is_cuda)
        self._copies[name].copy_(value.detach(), non_blocking=value.is_cuda)

    def _run(self, write: Write, model: GPT, state: TrainerState | None) -> None:
        try:
            self._result = write(model, state)
        except BaseException as error:  # raised in the training thread, by `take_result`
            self._error = error
