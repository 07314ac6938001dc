"""Evaluate a model on the tasks of lm-eval, EleutherAI's evaluation harness, without a server.

    __init__.py   `octavo.evaluate_tasks`: find the tasks, run lm-eval, return the scores
    model.py      a checkpoint as a model of lm-eval, which builds the prompts and computes the metrics

lm-eval is imported only when tasks are evaluated.
"""

import contextlib
import math
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from octavo import runs
from octavo.errors import OctavoError, first_line, install_command
from octavo.runs import RunLike
from octavo.settings import unknown_name_error

Task = str | Path | dict[str, Any]  # the name of a task or group of lm-eval, a YAML file, or the contents of one

_BOOTSTRAP_ITERATIONS = 100  # resamples for the standard error of a metric that is not a mean; F1 takes 10 ms for each

_FEWSHOT_SEED = 1234  # lm-eval's default


@dataclass(frozen=True)
class TaskScore:
    """One metric of a task or group. `filter` says which part of the generated texts was scored; usually "none"."""

    task: str
    metric: str
    filter: str
    value: float | None  # None: not a number
    stderr: float | None  # None: lm-eval has no standard error for this metric, or there are too few items
    items: int | None  # None for a group
    num_fewshot: int | None


@dataclass(frozen=True)
class TaskEvaluation:
    """The scores of a model on tasks, and how many of its inputs were longer than the context."""

    scores: list[TaskScore]
    block_size: int
    inputs: int  # texts that the model scored or continued
    truncated: int  # inputs without their beginning, because they are longer than the context


def evaluate_tasks(
    run: RunLike,
    tasks: Task | Sequence[Task],
    *,
    limit: int | None = None,
    num_fewshot: int | None = None,
    block_size: int | None = None,
    unknown: str = "error",
    special_tokens: bool = False,
    device: torch.device | str = "cpu",
) -> TaskEvaluation:
    """Evaluate a run on tasks of lm-eval.

        octavo.evaluate_tasks("runs/my-1", ["my-task.yaml", "hellaswag"], limit=100).scores

    `limit` is the number of items of each task; the default is all. `num_fewshot` is the number of few-shot
    examples; the default is the task's. `unknown` and `special_tokens` are those of `Tokenizer.encode`. A task file is
    trusted like a program: it can name Python code to run. Raises `OctavoError` if lm-eval is not installed, a task
    does not exist or fails, or an item does not fit into the context.
    """
    tasks = [tasks] if isinstance(tasks, str | Path | dict) else list(tasks)
    if limit is not None and limit < 1:
        raise OctavoError(f"limit={limit} is not at least 1", "--limit 100")
    if num_fewshot is not None and num_fewshot < 0:
        raise OctavoError(f"num_fewshot={num_fewshot} is negative", "--num-fewshot 5")
    try:
        import lm_eval
    except ImportError:
        raise OctavoError("tasks need the package lm-eval", install_command("eval")) from None
    from octavo.interop.lm_eval.model import OctavoModel

    model = OctavoModel(runs.load(run, device), block_size, unknown, special_tokens)
    specs, manager = _find_tasks(tasks)
    with _translate_errors(), _quiet_stdout():
        loaded = _load_tasks(manager, specs)
        for task in loaded["tasks"].values():
            _set_num_fewshot(task, num_fewshot)
        # Not `simple_evaluate`, which also runs git and pip to describe the machine.
        results = lm_eval.evaluate(model, loaded, limit=limit, bootstrap_iters=_BOOTSTRAP_ITERATIONS, log_samples=False)
    return TaskEvaluation(_scores(results), model.max_length, model.inputs, model.truncated)


def _find_tasks(tasks: Sequence[Task]) -> tuple[list[str | dict[str, Any]], Any]:
    """The tasks as lm-eval takes them, and its index of tasks. Raises `OctavoError` for one that does not exist."""
    from lm_eval.tasks import TaskManager

    specs = [str(task) if isinstance(task, Path) else task for task in tasks]
    if not specs:
        raise OctavoError("there is no task to evaluate", "--task hellaswag")
    # Indexing lm-eval's thousands of tasks takes seconds.
    files = [spec for spec in specs if isinstance(spec, dict) or os.path.isfile(spec)]
    manager = TaskManager(include_defaults=len(files) < len(specs))
    for spec in specs:
        if spec not in files and spec not in manager.task_index:
            if str(spec).endswith((".yaml", ".yml")):
                raise OctavoError(f"there is no task file {spec}", "check the path after --task")
            hint = "lm-eval ls tasks, which prints the name of every task"
            raise unknown_name_error("task", str(spec), manager.all_tasks, list_hint=hint)
    return specs, manager


def _load_tasks(manager: Any, specs: Sequence[str | dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Like `manager.load(specs)`, which would silently drop one of two tasks with the same name."""
    loaded: dict[str, dict[str, Any]] = {"tasks": {}, "groups": {}, "group_map": {}}
    for spec in specs:
        parts = manager.load([spec])
        if repeated := loaded["tasks"].keys() & parts["tasks"].keys():
            raise OctavoError(
                f"two of the tasks to evaluate have the name {min(repeated)}",
                "name each task or group once, and give each task file a different `task`",
            )
        for part, values in parts.items():
            loaded[part] |= values
    return loaded


def _set_num_fewshot(task: Any, num_fewshot: int | None) -> None:
    """Set the few-shot examples as lm-eval's own command does: a task whose own number is 0 keeps it."""
    default = task.get_config("num_fewshot")
    if num_fewshot is not None and default != 0:
        task.set_config("num_fewshot", num_fewshot)
    elif default is None:
        task.set_config("num_fewshot", 0)
    task.set_fewshot_seed(_FEWSHOT_SEED)


@contextlib.contextmanager
def _translate_errors() -> Iterator[None]:
    """Turn what lm-eval raises into an `OctavoError`: for a task's file, its data or the network."""
    try:
        yield
    except (OctavoError, MemoryError):
        raise
    except Exception as error:
        raise OctavoError(
            f"lm-eval cannot evaluate these tasks: {type(error).__name__}: {first_line(error)}",
            "check the task's file, and that its data are on this machine or the hub can be reached",
        ) from error


@contextlib.contextmanager
def _quiet_stdout() -> Iterator[None]:
    """Send what lm-eval prints to stderr, and let it compute standard errors in this process.

    Without DISABLE_MULTIPROC it forks a process for each core.
    """
    before = os.environ.get("DISABLE_MULTIPROC")
    os.environ["DISABLE_MULTIPROC"] = "1"
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        if before is None:
            del os.environ["DISABLE_MULTIPROC"]
        else:
            os.environ["DISABLE_MULTIPROC"] = before


def _scores(results: dict[str, Any]) -> list[TaskScore]:
    """The metrics in lm-eval's results: a key is "METRIC,FILTER", and its standard error "METRIC_stderr,FILTER"."""
    scores = []
    for name, values in (results["results"] | results.get("groups", {})).items():
        for key, value in values.items():
            metric, comma, filter = key.partition(",")
            if not comma or metric.endswith("_stderr"):
                continue
            count = results["n-samples"].get(name)
            scores.append(
                TaskScore(
                    task=name,
                    metric=metric,
                    filter=filter,
                    value=_number(value),
                    stderr=_number(values.get(f"{metric}_stderr,{filter}")),
                    items=count["effective"] if count else None,
                    num_fewshot=results["n-shot"].get(name),
                )
            )
    return scores


def _number(value: Any) -> float | None:
    """A finite number; None for anything else. lm-eval writes "N/A" for a standard error that it does not compute."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None
