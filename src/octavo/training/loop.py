"""The training loop: a plan in, a stream of events out.

`train` runs it to the end. The loop decides what is due after a step. The update (`step`), evaluation (`evaluator`),
times (`clock`) and everything that is written (`recorder`) have modules of their own.
"""

import contextlib
import itertools
import math
from collections.abc import Callable, Generator, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from octavo.data.prefetch import Prefetch
from octavo.data.sampler import BatchOfStep, batches
from octavo.distributed import ALONE, LostProcessError, World, check_divisible, check_shard
from octavo.errors import DivergenceError
from octavo.runs import Run, RunLike
from octavo.settings import Settings, SourceLike
from octavo.training import loggers
from octavo.training.checkpoint_writer import CheckpointWriter
from octavo.training.clock import Clock
from octavo.training.divergence import DivergencePolicy
from octavo.training.evaluator import Evaluator
from octavo.training.event import Event, Finished, Notice, Step
from octavo.training.interrupt import interruptible
from octavo.training.plan import Plan, plan
from octavo.training.recorder import Recorder
from octavo.training.run_estimate import describe_start
from octavo.training.setup import check_same_setup, create_run, set_up
from octavo.training.silent_recorder import SilentRecorder
from octavo.training.step import Trainer
from octavo.training.threads import restore_threads
from octavo.training.uploader import open_mirror, upload


def train(
    source: SourceLike | None = None,
    *,
    preset: str | None = None,
    config: str | Path | None = None,
    resume: RunLike | None = None,
    init: RunLike | None = None,
    out: str | Path | None = None,
    name: str | None = None,
    mirror: str | None = None,
    **settings: Any,
) -> Run:
    """Train a GPT on a source and return its run.

        run = octavo.train("my.txt", max_steps=500, n_layer=6)

    `settings` are the fields of `octavo.Settings`. They override the TOML file `config`, which overrides the `preset`.
    `resume` continues a run, `init` starts a new one from the weights of a run. `mirror` is a URL that the run is
    copied to. Ctrl-C ends training after the current step, with a checkpoint. Raises `OctavoError` for what the user
    can fix.
    """
    planned = plan(
        source,
        preset=preset,
        config=config,
        resume=resume,
        init=init,
        out=out,
        name=name,
        mirror=mirror,
        **settings,
    )
    with interruptible() as should_stop:
        *_, last = events(planned, should_stop=should_stop)
    assert isinstance(last, Finished)
    return Run(last.run)


def events(
    plan: Plan,
    *,
    should_stop: Callable[[], bool] = lambda: False,
    estimate_after: float = 2.0,
    world: World = ALONE,
    shard: int = 0,
) -> Iterator[Event]:
    """Carry out a plan and yield what happens; the last event is `Finished`.

    `should_stop` is called after every step and before each batch of an evaluation. Once it returns true, the run ends
    with a checkpoint. An evaluation that this interrupts is repeated when the run is resumed. `TimeEstimate` comes
    after `estimate_after` seconds of steps. No run folder is created before the text is read and the model built.

    Several processes that train together each call this with the same plan and their `world`. All yield the events;
    only rank 0 writes, and it alone yields `Sampled` and `Saved`. With `shard`, each group of that many processes
    divides the weights, gradients and optimizer state of one model.
    """
    check_shard(shard, world.size)
    clock = Clock(estimate_after)
    check_divisible(plan.settings.batch_size, world.size)  # before a text is prepared, which may take hours
    loggers.check_installed(plan.settings)
    storage = open_mirror(plan.mirror, plan.settings, bool(plan.resume)) if plan.mirror and world.is_first else None
    with world.local_rank_zero_first():
        setup = yield from set_up(plan, max(1, shard))
    check_same_setup(setup, world)
    settings = setup.settings
    batch_of_step = Prefetch(batches(setup.data.tokens["train"], settings, world), settings.max_steps)
    trainer = Trainer(setup.model, settings, setup.runtime, world, shard)
    if setup.optimizer_state:
        trainer.load_optimizer_state(setup.optimizer_state)
    run = setup.run or create_run(plan, setup, world)
    with (
        run.lock() if world.is_first else contextlib.nullcontext(),
        CheckpointWriter() as writer,
        batch_of_step,
        restore_threads(),
    ):
        evaluator, policy = Evaluator(trainer.model, settings, setup.data, world), DivergencePolicy(trainer)
        recorder_class = Recorder if world.is_first else SilentRecorder
        recorder = recorder_class(run, setup.data, trainer, evaluator, policy, clock, writer)
        if setup.resumed_from is not None:
            recorder.restore(setup.resumed_from)
        elif world.is_first:
            # The folder may have files of an earlier process that was killed before its first checkpoint.
            run.start_again(settings, setup.init)
        started, warnings = describe_start(plan, setup, run, trainer)
        notices = [*setup.runtime.notices, *setup.notices, *warnings]
        run_steps = partial(_run_steps, trainer, evaluator, policy, recorder, clock, batch_of_step, should_stop)
        steps = _run_with_rollbacks(run_steps, policy, recorder)
        names = settings.loggers if world.is_first else []
        try:
            # FSDP2's collectives run inside the model, so their errors may come from anywhere.
            with world.translate_errors(only_collectives=False) if shard else contextlib.nullcontext():
                events_of_run = loggers.tee(itertools.chain([started], map(Notice, notices), steps), names)
                yield from upload(events_of_run, run, storage, world) if plan.mirror else events_of_run
        except LostProcessError as error:
            raise LostProcessError(f"step {trainer.step + 1}: {error.message}", error.hint) from error


def _run_with_rollbacks(
    run_steps: Callable[[], Iterator[Event]], policy: DivergencePolicy, recorder: Recorder
) -> Iterator[Event]:
    """Run the remaining steps. If training diverges, continue from the last checkpoint, or raise the final error."""
    while True:
        try:
            yield from run_steps()
        except DivergenceError as error:
            yield from recorder.take_saved(wait=True)
            recorder.trainer.world.barrier()  # until rank 0 has the checkpoint on disk
            yield from map(Notice, policy.take_notices())
            if not policy.can_roll_back or not recorder.run.resumable:
                raise policy.final_error(error, recorder.last_checkpoint) from None
            yield from map(Notice, recorder.roll_back(error))
        else:
            return


def _run_steps(
    trainer: Trainer,
    evaluator: Evaluator,
    policy: DivergencePolicy,
    recorder: Recorder,
    clock: Clock,
    batch_of_step: BatchOfStep,
    should_stop: Callable[[], bool],
) -> Iterator[Event]:
    """Run the remaining steps. After each, log, evaluate, save and sample if that is due. Then finish the run.

    Raises `DivergenceError` if the loss, a gradient or a weight is not finite.
    """
    settings = trainer.settings
    finish_reason: str | None = None  # None while the run may continue
    logged_step = trainer.step
    trainer.learning_rate_scale = policy.learning_rate_scale
    if settings.on_divergence == "rollback" and recorder.last_checkpoint is None:
        yield from recorder.save_checkpoint(is_required=True)  # so that there is one to return to
    if recorder.unevaluated_step is not None:
        due = _actions_due(trainer.step, settings, is_stopped=False)
        unevaluated = recorder.unevaluated_step
        finish_reason = yield from _finish_step(due, unevaluated, finish_reason, evaluator, recorder, should_stop)
    clock.start_updates()
    while trainer.step < settings.max_steps and finish_reason is None:
        loss = trainer.compute_gradients(batch_of_step(trainer.step, policy.state.skipped_batches))
        grad_norm = trainer.clip_gradients()
        if policy.approves(trainer.step + 1, loss, grad_norm):
            trainer.apply_gradients(grad_norm)
        trainer.end_step()
        yield from map(Notice, trainer.take_notices() + policy.take_notices())
        recorder.commit_resume()  # once, and only in a resumed run
        yield from recorder.take_saved()
        if trainer.world.any(should_stop()):
            finish_reason = "stopped"
        due = _actions_due(trainer.step, settings, is_stopped=finish_reason == "stopped")
        if not due:
            continue
        trainer.runtime.synchronize()
        policy.read_losses()
        yield from map(Notice, policy.take_notices())
        clock.add_update_time()
        metrics = None
        if due & {"log", "evaluate", "save_checkpoint"}:
            metrics = _measure_step(trainer, policy, clock, loss, grad_norm, trainer.step - logged_step)
            logged_step = trainer.step
            yield metrics
            time_estimate = clock.estimate_total(trainer.step, settings, evaluator.tokens_per_evaluation)
            if time_estimate is not None:
                yield time_estimate
        finish_reason = yield from _finish_step(due, metrics, finish_reason, evaluator, recorder, should_stop)
        if due != {"log"}:  # writing a line counts as time in updates; evaluating, saving and sampling do not
            clock.start_updates()
    recorder.commit_resume()  # of a run that had no step left
    if recorder.last_checkpoint is None:  # with max_steps = 0 no step saved one, so save the initial weights
        yield from recorder.save_checkpoint(is_required=True)
    yield recorder.finish(finish_reason or "done")


def _finish_step(
    due: set[str],
    metrics: Step | None,
    finish_reason: str | None,
    evaluator: Evaluator,
    recorder: Recorder,
    should_stop: Callable[[], bool],
) -> Generator[Event, None, str | None]:
    """Evaluate, log, sample and save, if that is due. Returns the finish reason: None if the run may continue.

    If training is stopped during the evaluation, the checkpoint records that the step is not evaluated yet.
    """
    trainer, settings = recorder.trainer, evaluator.settings
    recorder.unevaluated_step = None
    if "evaluate" in due:
        trainer.check_replicas()
        evaluated = evaluator.evaluate(trainer.step, should_stop)
        if evaluated is None:
            finish_reason, due, recorder.unevaluated_step = "stopped", {"save_checkpoint"}, metrics
        else:
            recorder.require_finite("the validation loss", evaluated.val_loss)
            recorder.require_finite("the training loss", evaluated.train_loss)
            yield evaluated
            if evaluator.is_out_of_patience and trainer.step < settings.max_steps:
                finish_reason = "patience"
            if evaluated.best or finish_reason == "patience" or not settings.save_every:
                due.add("save_checkpoint")
    recorder.commit_resume()  # of a run that was stopped during this evaluation
    if metrics is not None:
        recorder.write_metrics(metrics)
    if "sample" in due:  # before the checkpoint, so that a resumed run has every sample up to its step
        yield from recorder.write_sample()
    if "save_checkpoint" in due:
        is_last = finish_reason is not None or trainer.step == settings.max_steps
        yield from recorder.save_checkpoint(is_required=is_last)
    elif "save_weights" in due:
        yield from recorder.save_weights()
    yield from map(Notice, recorder.take_notices())
    return finish_reason


def _actions_due(step: int, settings: Settings, is_stopped: bool) -> set[str]:
    """What to do after this step, before training continues."""
    is_final = step == settings.max_steps

    def is_multiple_of(interval: int) -> bool:
        return interval > 0 and step % interval == 0

    due = {
        "log": step == 1 or is_multiple_of(settings.log_every),
        "evaluate": is_multiple_of(settings.eval_every) or is_final,
        "save_checkpoint": is_multiple_of(settings.save_every) or is_final or is_stopped,
        "sample": settings.sample_every > 0 and (is_multiple_of(settings.sample_every) or is_final),
        "save_weights": step in settings.log_spaced_steps,  # only the weights: the views of `octavo.lens` show them
    }
    return {action for action, is_due in due.items() if is_due}


def _measure_step(
    trainer: Trainer, policy: DivergencePolicy, clock: Clock, loss: Tensor, grad_norm: Tensor, steps: int
) -> Step:
    """The numbers of the newest step; throughput is the mean of the last `steps`."""
    seconds = clock.end_interval()
    return Step(
        step=trainer.step,
        tokens=trainer.tokens,
        seconds=clock.elapsed,
        loss=_finite_or_none(loss.item()),
        learning_rate=trainer.learning_rate,
        grad_norm=_finite_or_none(grad_norm.item()),
        tokens_per_second=round(steps * trainer.tokens_per_step / max(seconds, 1e-9), 1),
        memory_bytes=trainer.runtime.peak_memory(),
        spikes=policy.state.spikes,
        skipped_steps=policy.state.skipped_steps,
        rollbacks=policy.state.rollbacks,
    )


def _finite_or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None
