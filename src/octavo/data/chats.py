"""Recognize the chats in JSON: OpenAI's and Hugging Face's `messages`, ShareGPT's `conversations`, ChatGPT's export.

A chat becomes one document, a transcript with a line for each speaker (see `octavo.transcript`). Messages without text,
such as calls of tools, are left out.
"""

from collections.abc import Iterator
from typing import Any

from octavo import transcript

_LISTS = ("messages", "conversations", "conversation", "chat_messages")
_ROLES, _TEXTS = ("role", "from", "sender"), ("content", "value", "text")


def render_chat(value: Any) -> str | None:
    """The transcript of a chat: a list of messages, or an object that has one. None if it is something else."""
    messages = _find_messages(value)
    return None if messages is None else transcript.render(messages)


def _find_messages(value: Any) -> list[tuple[str, str]] | None:
    if isinstance(value, list):
        found = [_read_message(message) for message in value]
        return [message for message in found if message[1].strip()] if found and all(found) else None  # type: ignore
    if not isinstance(value, dict):
        return None
    if isinstance(value.get("mapping"), dict):
        return list(_walk_branch(value["mapping"], value.get("current_node")))
    for name in _LISTS:
        if isinstance(value.get(name), list):
            return _find_messages(value[name])
    return None


def _read_message(message: Any) -> tuple[str, str] | None:
    """The role and the text of a message; the text is empty if it has none. None if it is no message."""
    if not isinstance(message, dict):
        return None
    author = message.get("author")
    role = author.get("role") if isinstance(author, dict) else next((message[n] for n in _ROLES if n in message), None)
    content = next((message[name] for name in _TEXTS if name in message), None)
    if not isinstance(role, str) or not any(name in message for name in _TEXTS):
        return None
    return role, _read_content(content)


def _read_content(content: Any) -> str:
    """The text of a message: text, or parts of which some are text."""
    if isinstance(content, dict):
        content = content.get("parts", content.get("text"))
    if isinstance(content, list):
        parts = [part.get("text") if isinstance(part, dict) else part for part in content]
        return "\n".join(part for part in parts if isinstance(part, str))
    return content if isinstance(content, str) else ""


def _walk_branch(mapping: dict[str, Any], last: Any) -> Iterator[tuple[str, str]]:
    """Yield the messages on the path from the root to `last`. In ChatGPT's export, each edit or retry is a new branch.

    Only what the user and the model wrote: the export also has hidden instructions and the output of tools.
    """
    if not isinstance(last, str) or last not in mapping:
        last = _newest_leaf(mapping)
    branch: list[dict[str, Any]] = []
    seen = set()
    while isinstance(last, str) and last not in seen and isinstance(node := mapping.get(last), dict):
        seen.add(last)
        branch.append(node)
        last = node.get("parent")
    for node in reversed(branch):
        message = _read_message(node.get("message"))
        if message is not None and message[0] in ("user", "assistant") and message[1].strip():
            yield message


def _newest_leaf(mapping: dict[str, Any]) -> Any:
    """The id of the last node of the newest branch: from the root, the last child of each node."""
    last: Any = next((id for id, node in mapping.items() if isinstance(node, dict) and not node.get("parent")), None)
    passed: set[str] = set()
    while isinstance(last, str) and last not in passed:
        passed.add(last)
        children = mapping[last].get("children") if isinstance(mapping.get(last), dict) else None
        if not isinstance(children, list) or not children:
            break
        last = children[-1]
    return last
