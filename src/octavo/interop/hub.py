"""GPT-2 models of the Hugging Face hub, by name: `hf:openai-community/gpt2`.

They are kept in the cache of Hugging Face's own client, which other programs use too, and loaded from there like any
Hugging Face folder.
"""

from pathlib import Path

from octavo.errors import OctavoError

PREFIX = "hf:"

_CONFIG_AND_TOKENIZER = [
    *("config.json", "generation_config.json", "*token*.json", "vocab.json", "merges.txt", "*.index.json"),
    "chat_template.jinja",
]
_WEIGHTS = ["model*.safetensors", "pytorch_model*.bin"]  # the first kind that the model has is downloaded


def is_name(text: str) -> bool:
    """Whether a text may be the name of a model on the hub: NAME or OWNER/NAME."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # documented, but not in __all__

    try:
        validate_repo_id(text)
    except HFValidationError:
        return False
    return True


def find_cached(name: str) -> Path | None:
    """The folder of a model in the cache; None if it, or one of its files, is not there. Uses no network."""
    from huggingface_hub import try_to_load_from_cache

    from octavo.interop import gpt2_folder

    if not is_name(name):
        return None
    config = try_to_load_from_cache(name, "config.json")
    if not isinstance(config, str) or not gpt2_folder.is_complete(Path(config).parent):
        return None
    return Path(config).parent


def download(name: str) -> Path:
    """Download a model into the cache, unless it is there, and return its folder.

    Raises `OctavoError` if there is no such model, or the hub cannot be reached.
    """
    from huggingface_hub import snapshot_download

    from octavo.interop import gpt2_folder

    if not is_name(name):
        raise OctavoError(f"{name!r} is not the name of a model on the hub", f"{PREFIX}openai-community/gpt2")
    folder = find_cached(name)
    for weights in _WEIGHTS if folder is None else ():
        try:
            folder = Path(
                snapshot_download(name, allow_patterns=[*_CONFIG_AND_TOKENIZER, weights], ignore_patterns=["*/*"])
            )
        except Exception as error:  # errors of the network, the hub and its client have no common class
            lines = str(error).strip().splitlines()
            raise OctavoError(
                f"{PREFIX}{name} cannot be downloaded: {lines[0] if lines else type(error).__name__}",
                "check its name, the network, and the environment variables HF_HUB_OFFLINE and HF_TOKEN",
            ) from error
        if gpt2_folder.is_complete(folder):
            break
    assert folder is not None
    return folder  # if it has no weights or no tokenizer, the error that loading it raises says so
