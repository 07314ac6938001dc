"""The recorder of every rank but 0."""

from collections.abc import Iterator
from typing import Any

from octavo.checkpoint import TrainerState
from octavo.training.event import Notice, Sampled, Saved
from octavo.training.recorder import Recorder
from octavo.training.setup import ResumePoint


class SilentRecorder(Recorder):
    """Makes the same decisions as the recorder of rank 0, from the same numbers, and writes nothing."""

    def commit_resume(self) -> None:
        pass

    def write_sample(self) -> Iterator[Sampled]:
        self._send_parts()
        yield from ()

    def _rewind(self, point: ResumePoint) -> None:
        pass

    def _write_line(self, kind: str, line: dict[str, Any]) -> None:
        pass

    def _save(self, state: TrainerState | None, is_best: bool, is_required: bool) -> Iterator[Saved | Notice]:
        self._send_parts(state)
        if state is not None:
            self.last_checkpoint = self.run.checkpoint_folder(self.trainer.step)
        yield from ()

    def _send_parts(self, state: TrainerState | None = None) -> None:
        """Take part in gathering the tensors of a sharded model, which rank 0 needs."""
        if self.trainer.is_sharded:
            with self.trainer.gathering():
                for _ in self.trainer.tensors(state):
                    pass
