"""lm-eval measures a model directly, with `octavo eval --task`, and over HTTP: as its own model `hf` does, to 1e-4."""

import json
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import octavo
from commands import AssertRejected, RunCommand
from octavo.errors import OctavoError
from octavo.generation.prompt import encode_prompt
from octavo.server import load_model
from serving import BLOCK, SETTINGS, run_server, write_checkpoint

pytestmark = pytest.mark.filterwarnings("ignore")  # warnings of lm-eval and its data sets

ITEMS = [
    {"question": "the cat sat on the", "choices": [" mat", " hat", " rat!"], "answer": 0},
    {"question": "and the rat ", "choices": [" sat on the mat", "cat"], "answer": 1},
    {"question": "café €5", "choices": ["!", " naïve"], "answer": 0},
    {"question": "", "choices": ["the", " cat sat"], "answer": 0},
    {"question": "the cat sat on the mat, " * 8, "choices": ["and", "the"], "answer": 0},
]
SHORT = 3  # items that have a context, and fit into that of the models
TASKS: dict[str, dict[str, Any]] = {
    "choices": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{answer}}",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    },
    "rolling": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{question}}!",
        "metric_list": [{"metric": "byte_perplexity"}],
    },
    "generated": {
        "output_type": "generate_until",
        "doc_to_text": "{{question}}the",
        "doc_to_target": "{{answer}}",
        "generation_kwargs": {"until": ["q", "cat ", "€", "\n\n", "é", "zz"], "max_gen_toks": 9, "do_sample": False},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    },
}
KINDS = ["char", "byte", "word:300", "bpe:300", "gpt2"]


@dataclass
class Measured:
    """A model, and what lm-eval's model `hf` says of it."""

    kind: str
    folder: Path
    prefix: int  # the token before a text without context
    tasks: list[dict[str, Any]]
    expected: dict[str, list[Any]] = field(default_factory=dict)


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[dict[str, Any]]]:
    """The tasks, with data in a local file; nothing is downloaded."""
    import datasets

    folder = tmp_path_factory.mktemp("tasks")
    data_files = {}
    for split, items in (("whole", ITEMS), ("short", ITEMS[:SHORT])):
        data_files[split] = str(folder / f"{split}.jsonl")
        Path(data_files[split]).write_text("".join(json.dumps(item) + "\n" for item in items), encoding="utf-8")
    common = {"dataset_path": "json", "dataset_kwargs": {"data_files": data_files}, "target_delimiter": ""}
    with pytest.MonkeyPatch.context() as patch:
        for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
            patch.setenv(name, "1")
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "datasets")
        yield [
            {"task": f"{split}_{name}", "test_split": split} | common | task
            for name, task in TASKS.items()
            for split in data_files
        ]


@pytest.fixture(scope="module", params=KINDS)
def measured(
    request: pytest.FixtureRequest, tasks: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> Measured:
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "gpt2":
            shared: Path = request.getfixturevalue("shared")
            patch.setenv("TIKTOKEN_CACHE_DIR", str(shared / "tiktoken-cache"))
        folder = write_checkpoint(tmp_path_factory.mktemp("models") / "my-1", request.param)
    tokenizer = octavo.load(folder).tokenizer
    [prefix] = encode_prompt(tokenizer, "").ids
    arguments = f"pretrained={folder},max_length={BLOCK},dtype=float32,prefix_token_id={prefix}"
    return Measured(request.param, folder, prefix, tasks, responses("hf", tasks, arguments))


def responses(model: Any, tasks: list[dict[str, Any]], arguments: str = "") -> dict[str, list[Any]]:
    """The model's answer to every request of each task."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    result = lm_eval.simple_evaluate(
        model=model,
        model_args=arguments or None,
        tasks=tasks,
        device="cpu",
        log_samples=True,
        bootstrap_iters=0,
        task_manager=TaskManager(include_defaults=False),
    )
    return {name: [each["resps"] for each in samples] for name, samples in result["samples"].items()}


def assert_same_responses(actual: dict[str, list[Any]], expected: dict[str, list[Any]]) -> None:
    for name in expected:
        if name.endswith("generated"):
            assert actual[name] == expected[name]
        else:
            assert flatten(actual[name]) == pytest.approx(flatten(expected[name]), abs=1e-4)


def flatten(values: Any) -> list[float]:
    if isinstance(values, list | tuple):
        return [each for value in values for each in flatten(value)]
    return [float(values)]


def test_a_model_has_the_log_likelihoods_and_texts_of_lm_evals_hf_model(measured: Measured) -> None:
    from octavo.interop.lm_eval.model import OctavoModel

    model = OctavoModel(octavo.load(measured.folder))
    actual = responses(model, measured.tasks)
    assert_same_responses(actual, measured.expected)
    assert len(flatten(actual["whole_choices"])) == 2 * sum(len(item["choices"]) for item in ITEMS)
    assert model.truncated > 0


@pytest.mark.parametrize("measured", ["bpe:300", "char"], indirect=True)
def test_over_http_a_model_has_the_log_likelihoods_and_texts_of_lm_evals_hf_model(
    measured: Measured, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = [task for task in measured.tasks if task["task"].startswith("short")]
    models = {"my-1": load_model("my-1", measured.folder, SETTINGS)}
    keys, path, arguments = {}, "v1/completions", ""
    if measured.kind == "char":  # one of several models, with an API key
        models["other"] = load_model("other", measured.folder, SETTINGS)
        keys, path, arguments = {"mine": "KEY"}, "models/my-1/v1/completions", ",auth_token=KEY,custom_prefix_token_id="
        arguments += str(measured.prefix)
        monkeypatch.setenv("OPENAI_API_KEY", "KEY")
    with run_server(models, keys=keys) as server:
        arguments = f"model=my-1,base_url={server.url}/{path},max_length={BLOCK},batch_size=4{arguments}"
        actual = responses("local-completions", tasks, arguments)
    expected = {task["task"]: measured.expected[task["task"]] for task in tasks}
    for name in expected.keys() & {"short_generated"}:  # the server leaves out bytes that are not UTF-8
        expected[name] = [[[text.replace("\ufffd", "")]] for [[text]] in expected[name]]
    assert_same_responses(actual, expected)


# octavo eval --task


@pytest.mark.parametrize("measured", ["char"], indirect=True)
def test_the_scores_are_those_of_lm_evals_own_command(measured: Measured) -> None:
    """Its function `simple_evaluate` chooses the same items and solved examples."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    from octavo.interop.lm_eval.model import OctavoModel

    tasks = [task | {"fewshot_split": "whole"} for task in measured.tasks if "generated" not in task["task"]]
    evaluation = octavo.evaluate_tasks(measured.folder, tasks, num_fewshot=2, limit=2)
    manager = TaskManager(include_defaults=False)
    model = OctavoModel(octavo.load(measured.folder))
    expected = lm_eval.simple_evaluate(model, tasks=tasks, num_fewshot=2, limit=2, task_manager=manager)
    assert {score.task for score in evaluation.scores} == expected["results"].keys()
    for score in evaluation.scores:
        assert score.value == pytest.approx(expected["results"][score.task][f"{score.metric},{score.filter}"])
        assert (score.num_fewshot, score.items) == (2, 2)
    assert (evaluation.inputs, evaluation.truncated) == (model.inputs, model.truncated)


@pytest.fixture
def task_file(tasks: list[dict[str, Any]], tmp_path: Path) -> Path:
    [task] = [task for task in tasks if task["task"] == "short_choices"]
    path = tmp_path / "my-task.yaml"
    path.write_text(json.dumps(task), encoding="utf-8")  # JSON is YAML
    return path


@pytest.mark.parametrize("measured", ["char"], indirect=True)
def test_the_command_prints_the_scores_of_a_task_file(
    measured: Measured, task_file: Path, run_command: RunCommand
) -> None:
    result = run_command("eval", measured.folder, "--task", task_file, "--json", "--device", "cpu")
    assert result.code == 0, result.err
    [score] = result.json["scores"]
    assert (score["task"], score["metric"], score["items"], score["num_fewshot"]) == ("short_choices", "acc", SHORT, 0)
    best = [max(range(len(item)), key=lambda choice: item[choice][0][0]) for item in measured.expected["short_choices"]]
    accuracy = sum(choice == item["answer"] for choice, item in zip(best, ITEMS, strict=False)) / SHORT
    assert score["value"] == pytest.approx(accuracy)
    assert score["stderr"] is not None
    assert (result.json["block_size"], result.json["truncated"]) == (BLOCK, 0)
    limited = run_command("eval", measured.folder, "--task", task_file, "--limit", 2, "--block-size", 16)
    assert limited.code == 0, limited.err
    header, line, notice = limited.out.splitlines()
    assert header.split() == ["task", "metric", "value", "stderr", "items", "few-shot"]
    assert line.split()[:2] + line.split()[-2:] == ["short_choices", "acc", "2", "0"]
    assert "longer than the context of 16" in notice


@pytest.mark.parametrize("measured", ["char"], indirect=True)
def test_what_cannot_be_evaluated_is_rejected(
    measured: Measured,
    task_file: Path,
    assert_rejected: AssertRejected,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import lm_eval.tasks

    # Of lm-eval's own index, which takes seconds to read, this test needs one task.
    index = lm_eval.tasks.TaskManager(include_path=task_file.parent, include_defaults=False)
    monkeypatch.setattr(lm_eval.tasks, "TaskManager", lambda **_: index)
    evaluate = ["eval", measured.folder, "--task"]
    assert_rejected([*evaluate, "short_choice"], "short_choice", "--task short_choices")
    assert_rejected([*evaluate, "?"], "'?'", "lm-eval ls tasks")  # not a list of thousands
    assert_rejected([*evaluate, "no/such.yaml"], "no/such.yaml")
    shutil.copy(task_file, "copy.yaml")
    assert_rejected([*evaluate, task_file, "--task", "copy.yaml"], "have the name short_choices")
    for flags in (["--limit", 0], ["--num-fewshot", -1], ["--block-size", BLOCK + 1], ["--encoding", "latin-1"]):
        assert_rejected([*evaluate, task_file, *flags], flags[0].removeprefix("--").split("-")[0])
    assert_rejected(["eval", measured.folder, "text.txt", "--task", task_file], "SOURCE")
    assert_rejected(["eval", measured.folder, "text.txt", "--limit", 2], "--limit")
    assert_rejected(["eval", measured.folder, "--errors", "replace"], "--errors")
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    assert_rejected([*evaluate, task_file], "[eval]")


@pytest.mark.parametrize("measured", ["char"], indirect=True)
def test_an_error_in_a_task_file_is_one_message(measured: Measured, task_file: Path, run_command: RunCommand) -> None:
    task = json.loads(task_file.read_text(encoding="utf-8"))
    wrong: list[dict[str, Any]] = [
        {"task": None},
        {"output_type": "telepathy"},
        {"test_split": "missing"},
        {"doc_to_text": "{{ question"},
        {"doc_to_choice": "{{choices + ['Ж']}}"},  # not in the vocabulary
        {"doc_to_choice": f"{{{{choices + ['the' * {BLOCK}]}}}}"},  # longer than the context
    ]
    for text in ("{", *(json.dumps(task | changes) for changes in wrong)):
        task_file.write_text(text, encoding="utf-8")
        result = run_command("eval", measured.folder, "--task", task_file)
        assert result.code == 2
        message, hint = result.err.splitlines()[-2:]  # after lm-eval's progress
        assert message.startswith("error: ")
        assert hint.startswith("  try: ")
        assert "Traceback" not in result.err
    task_file.write_text(json.dumps(task | {"doc_to_choice": "{{choices + ['Ж']}}"}), encoding="utf-8")
    result = run_command("eval", measured.folder, "--task", task_file, "--unknown", "skip")
    assert result.code == 2
    assert "no tokens" in result.err
    assert "--unknown replace" in result.err


@pytest.mark.parametrize(
    ("options", "message"),
    [({"max_gen_toks": BLOCK}, "context has 64"), ({"until": ["a"], "num_beams": 4, "max_gen_toks": 4}, "num_beams")],
)
@pytest.mark.parametrize("measured", ["char"], indirect=True)
def test_options_of_generation_are_used_or_rejected(measured: Measured, options: dict[str, Any], message: str) -> None:
    from lm_eval.api.instance import Instance

    from octavo.interop.lm_eval.model import OctavoModel

    model = OctavoModel(octavo.load(measured.folder))
    with pytest.raises(OctavoError, match=message):
        model.generate_until([Instance("generate_until", {}, ("the cat", options), 0)])
