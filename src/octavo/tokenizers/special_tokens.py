"""The special tokens of a Hugging Face folder, their names and the chat template, in all the files that can have them.

tokenizer.json              added tokens, some of them special
added_tokens.json           added tokens of a folder of older form: their ids
tokenizer_config.json       names such as `eos_token`, and in `added_tokens_decoder` added tokens with their flags;
                            `start_of_text` is Octavo's own, and transformers keeps it
special_tokens_map.json     names
generation_config.json,     the ids of the eos, bos and pad tokens, where no tokenizer file names them
config.json
chat_template.jinja         the chat template; in folders of older form it is in tokenizer_config.json
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from octavo.errors import OctavoError
from octavo.schema import check, read_json

if TYPE_CHECKING:
    import tokenizers

# Special tokens by name, as in transformers: "eos_token" and so on have one token, "additional_special_tokens" several.
SpecialTokensMap = dict[str, str | list[str]]

_LISTS = ("additional_special_tokens", "extra_special_tokens")  # the second is the name in transformers 5
_HINT = "another copy of the folder"
_MAX_TEMPLATE_BYTES = 1 << 20


def read_special_tokens_map(folder: Path) -> SpecialTokensMap:
    """The special tokens that the files of a folder name. Raises `OctavoError` if one of the files is damaged."""
    special_tokens_map: SpecialTokensMap = {}
    for file in ("special_tokens_map.json", "tokenizer_config.json"):
        for name, value in _read(folder / file).items():
            if name.endswith("_token") and (content := _content(value)) is not None:
                special_tokens_map[name] = content
            elif name in _LISTS and isinstance(value, list):
                special_tokens_map[name] = [content for each in value if (content := _content(each)) is not None]
    return special_tokens_map


def named_tokens(special_tokens_map: SpecialTokensMap) -> list[str]:
    """All tokens of the map."""
    values = special_tokens_map.values()
    return [token for value in values for token in ([value] if isinstance(value, str) else value)]


def read_special_token_ids(folder: Path) -> dict[str, int]:
    """The ids of the eos, bos and pad tokens in the model's own files, by name."""
    ids: dict[str, int] = {}
    for file in ("config.json", "generation_config.json"):
        config = _read(folder / file)
        for name in ("bos_token", "eos_token", "pad_token"):
            if isinstance(id := config.get(f"{name}_id"), int):
                ids[name] = id
    return ids


def read_start_of_text(folder: Path) -> str | None:
    """The text of the token that generated texts start after, if it is not the bos token; None if it is."""
    start = _read(folder / "tokenizer_config.json").get("start_of_text")
    return start if isinstance(start, str) else None


def read_chat_template(folder: Path) -> str | None:
    """The template by which a conversation becomes a text; None if the folder has none. It is not checked here."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        template: object = path.read_bytes()[:_MAX_TEMPLATE_BYTES].decode()
    else:
        template = _read(folder / "tokenizer_config.json").get("chat_template")
    if isinstance(template, list):  # several, by name
        named = [each for each in template if isinstance(each, dict) and each.get("name") == "default"]
        template = named[0].get("template") if named else None
    return template if isinstance(template, str) and template else None


def add_tokens(backend: "tokenizers.Tokenizer", folder: Path, special_tokens_map: SpecialTokensMap) -> None:
    """Add the tokens that files other than tokenizer.json list, with their ids.

    Raises `OctavoError` if a token would get another id than the one that is listed.
    """
    from tokenizers import AddedToken

    special = named_tokens(special_tokens_map)
    listed: dict[int, dict[str, Any]] = {}
    for content, id in check(_read(folder / "added_tokens.json"), dict[str, int], "added_tokens.json", _HINT).items():
        listed[id] = {"content": content, "special": content in special}
    decoder = _read(folder / "tokenizer_config.json").get("added_tokens_decoder") or {}
    listed |= check(decoder, dict[int, dict[str, str | bool]], "added_tokens_decoder in tokenizer_config.json", _HINT)
    present = {token.content for token in backend.get_added_tokens_decoder().values()}
    for id, flags in sorted(listed.items()):
        token = AddedToken(**{name: value for name, value in flags.items() if name in _FLAGS})
        if token.content not in present:
            backend.add_tokens([token])
        if backend.token_to_id(token.content) != id:
            raise OctavoError(
                f"the added token {token.content!r} has id {id} in the files of {folder}, and "
                f"{backend.token_to_id(token.content)} in the tokenizer",
                _HINT,
            )


_FLAGS = ("content", "special", "lstrip", "rstrip", "single_word", "normalized")


def _content(value: object) -> str | None:
    """A named token: a text, or an object with its flags."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) and value else None


def _read(path: Path) -> dict[str, Any]:
    return read_json(path, dict[str, Any], _HINT) if path.is_file() else {}
