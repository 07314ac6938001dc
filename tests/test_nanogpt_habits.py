"""What users of nanoGPT type: config files, options of train.py and sample.py, folders that are not prepared yet."""

import shlex
from pathlib import Path

import pytest

from commands import SMALL, AssertRejected, RunCommand
from octavo import cli, training
from octavo.errors import OctavoWarning
from octavo.settings import Settings, nanogpt, resolve
from preparing import error_of, write

pytestmark = pytest.mark.usefixtures("workdir")

# The settings that config/train_shakespeare_char.py assigns.
SHAKESPEARE_CHAR = """# train a miniature character-level shakespeare model
out_dir = 'out-shakespeare-char'
eval_interval = 250 # keep frequent because we'll overfit
eval_iters = 200
log_interval = 10
always_save_checkpoint = False
wandb_log = False
wandb_project = 'shakespeare-char'
wandb_run_name = 'mini-gpt'
dataset = 'shakespeare_char'
gradient_accumulation_steps = 1
batch_size = 64
block_size = 256
n_layer = 6
n_head = 6
n_embd = 384
dropout = 0.2
learning_rate = 1e-3
max_iters = 5000
lr_decay_iters = 5000
min_lr = 1e-4
beta2 = 0.99
warmup_iters = 100
"""
# The command for a CPU in nanoGPT's README.
CPU_OPTIONS = (
    "--device=cpu --compile=False --eval_iters=20 --log_interval=1 --block_size=64 --batch_size=12 --n_layer=4 "
    "--n_head=4 --n_embd=128 --max_iters=2000 --lr_decay_iters=2000 --dropout=0.0"
)
FINETUNE = """import time
out_dir = 'out-shakespeare'
wandb_run_name = 'ft-' + str(time.time())
dataset = 'shakespeare'
init_from = 'gpt2-xl' # this is the largest GPT-2 model
batch_size = 1
gradient_accumulation_steps = 4 * 8
max_iters = 20
learning_rate = 3e-5
decay_lr = False
"""


def write_config(content: str = SHAKESPEARE_CHAR) -> Path:
    return write(Path("config/some.py"), content)


def settings_of_command(command: str) -> Settings:
    """The settings of a command that a hint names, which must be valid."""
    program, *words = shlex.split(command)
    assert program == "octavo"
    arguments = cli.parse(words)
    explicit = {name[8:]: value for name, value in vars(arguments).items() if name.startswith("setting_")}
    return resolve(arguments.preset, source=arguments.source[0], **explicit)


def hint_of(error: str) -> str:
    return error.partition("\n  try: ")[2].strip()


# Config files


@pytest.mark.parametrize("words", [{"source": "config/some.py"}, {"config": "config/some.py"}])
def test_a_config_file_trains_what_nanogpt_would(words: dict[str, str]) -> None:
    write_config()
    with pytest.warns(OctavoWarning, match="octavo train shakespeare --preset nanogpt-baby$"):
        plan = training.plan(**words)  # type: ignore[arg-type]
    assert plan.settings == resolve("nanogpt-baby", source="shakespeare", max_epochs=0.0)
    with pytest.warns(OctavoWarning):
        plan = training.plan(**words, n_layer=2)  # type: ignore[arg-type]
    assert plan.settings.n_layer == 2


def test_a_config_file_may_have_a_source_beside_it() -> None:
    write_config()
    with pytest.warns(OctavoWarning):
        assert training.plan(["config/some.py", "text.txt"]).settings.source == "text.txt"


def test_a_config_file_that_starts_from_gpt2_initializes_from_the_hub() -> None:
    write_config(FINETUNE)
    with pytest.warns(OctavoWarning, match="--init hf:openai-community/gpt2-xl"):
        plan = training.plan("config/some.py")
    assert plan.init == "hf:openai-community/gpt2-xl"
    settings = plan.settings
    assert (settings.batch_size, settings.micro_batch, settings.max_steps, settings.schedule) == (32, 1, 20, "constant")


def test_the_defaults_of_train_py_hold_for_what_a_config_does_not_set() -> None:
    recipe = nanogpt.translate({"max_iters": 10, "n_layer": 1})
    settings = resolve(recipe.preset, **recipe.settings)
    assert (settings.n_layer, settings.max_steps, settings.batch_size, settings.micro_batch) == (1, 10, 480, 12)
    assert (settings.bias, settings.optimizer, settings.activation, settings.source) == (
        False,
        "adamw",
        "gelu",
        "hf:Skylion007/openwebtext",
    )


def test_a_config_file_is_never_executed() -> None:
    for code in ("open('made', 'w')", "n_layer = open('made', 'w')", "max_iters = __import__('os').mkdir('made')"):
        path = write_config(f"max_iters = 10\n{code}\n")
        nanogpt.is_config(path)
    assert not Path("made").exists()
    assert "line 2, is not an assignment" in error_of(lambda: nanogpt.read_config(write_config("\nprint()"))).message
    for broken in ("max_iters = ", "(" * 1000, "max_iters = 9 ** 9 ** 9", "max_iters = 1 / 0", "\0"):
        assert not nanogpt.is_config(write_config(broken))


def test_other_python_files_are_texts() -> None:
    for code in ("x = 5\n", "def f():\n    return 1\n", "n_layer = 6\n"):
        assert not nanogpt.is_config(write_config(code))


ODD_VALUES = (
    "[1]",
    "{}",
    "{'a': 1}",
    "None",
    "()",
    "1e999",
    "-1",
    "''",
    "b'x'",
    "{1, 2}",
    "1j",
    "...",
    "-",
    "x" * 9999,
)


@pytest.mark.parametrize("value", ODD_VALUES)
def test_odd_values_of_options_and_settings_are_errors_with_a_message(
    value: str, assert_rejected: AssertRejected
) -> None:
    for name in nanogpt.NANOGPT_NAMES:
        write_config()
        assert_rejected(["train", "config/some.py", f"--{name}={value}"], f"--{name} (")
        assert_rejected(["train", "text.txt", f"--{name}={value}"], f"--{name} (")
    for name in ("dtype", "gradient_accumulation_steps", "batch_size", "n_layer", "dropout"):
        path = write_config(f"max_iters = 10\n{name} = {value if value[0] not in '-x' else repr(value)}\n")
        if value[0] in "[({b.1" and value != "1e999":
            assert f"{name}=" in error_of(lambda path=path: nanogpt.translate(nanogpt.read_config(path))).message


# Options


def test_all_options_of_a_command_are_answered_together(assert_rejected: AssertRejected) -> None:
    write_config()
    error = assert_rejected(["train", "config/some.py", *CPU_OPTIONS.split()], "--eval_iters", "--lr_decay_iters")
    assert settings_of_command(hint_of(error)) == resolve(
        "nanogpt-tiny", source="shakespeare", log_every=1, device="cpu", compile="off"
    )


@pytest.mark.parametrize(
    ("words", "command"),
    [
        ("train text.txt --max_iters=10 --n_layer=2", "octavo train --max-steps 10 text.txt --n-layer=2"),
        ("train --dataset shakespeare_char --wandb_log=True", "octavo train shakespeare --log wandb --tokenizer char"),
        ("train --init_from=gpt2 --min_lr=1e-5", "--init hf:openai-community/gpt2 --min-learning-rate 1e-05"),
        ("train --gradient_accumulation_steps=4 --out_dir=o", "octavo train --out=o"),
        ("train --init_from=resume --out_dir=o", "--init o/ckpt.pt"),
        ("train --eval_only=True --init_from=gpt2", "octavo eval hf:openai-community/gpt2 SOURCE"),
        ("sample --out_dir=out --num_samples=5", "octavo sample out --num-samples=5"),
        ("sample --init_from=gpt2-xl --start=FILE:p.txt", "sample hf:openai-community/gpt2-xl --prompt-file p.txt"),
        ("sample runs/mine --start 'What is' --dtype=float32", "octavo sample runs/mine --prompt 'What is'"),
        ("sample --start=abc", "octavo sample RUN --prompt abc"),
        ("sample runs/mine --prompt FILE:p.txt", "--prompt-file p.txt"),
        ("eval --out_dir=out", "octavo eval --help"),
    ],
)
def test_the_hint_is_the_command_of_octavo(words: str, command: str, assert_rejected: AssertRejected) -> None:
    assert command in hint_of(assert_rejected(shlex.split(words)))


# Folders and files


def test_a_folder_that_is_not_prepared_yet_is_not_a_text(assert_rejected: AssertRejected) -> None:
    for name, hint in (("shakespeare_char", "octavo train shakespeare"), ("mine", "")):
        write(Path("data", name, "prepare.py"), "np.array(ids).tofile('train.bin')\n")
        error = assert_rejected(["train", f"data/{name}", *SMALL], "train.bin")
        assert hint_of(error).startswith(f"python data/{name}/prepare.py")
        assert hint in error


def test_the_text_in_the_folder_of_a_dataset_is_not_downloaded_again(assert_rejected: AssertRejected) -> None:
    write(Path("config.py"), "dataset = 'shakespeare_char'\nmax_iters = 5\n")
    assert "octavo train shakespeare " in hint_of(assert_rejected(["train", "config.py", "--max_iters=3"]))
    write(Path("data/shakespeare_char/input.txt"), "a text\n" * 100)
    assert "octavo train data/shakespeare_char/input.txt " in hint_of(
        assert_rejected(["train", "config.py", "--max_iters=3"])
    )


def test_a_token_file_is_named_by_its_folder(assert_rejected: AssertRejected) -> None:
    for split in ("train", "val"):
        write(Path(f"data/mine/{split}.bin"), b"\0\0" * 100)
    assert hint_of(assert_rejected(["train", "data/mine/train.bin", *SMALL], "token file")) == "its folder: data/mine"


def test_a_checkpoint_of_nanogpt_is_not_resumed(assert_rejected: AssertRejected, run_command: RunCommand) -> None:
    write(Path("out/ckpt.pt"), b"PK")
    assert "--init out/ckpt.pt" in assert_rejected(["train", "--resume", "out"], "nanoGPT")
