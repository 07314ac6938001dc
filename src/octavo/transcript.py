"""A chat as plain text, with the speaker's name before each message.

    User: How do owls fly?
    Assistant: In silence.

Chat exports become such texts to train on, and a model without a chat template is prompted with one.
"""

from collections.abc import Iterable

# The roles of a chat, and who is named as the speaker.
SPEAKERS = {"system": "System", "developer": "System", "user": "User", "assistant": "Assistant", "tool": "Tool"}
# What other programs call the same roles.
_ROLES = {"human": "user", "gpt": "assistant", "model": "assistant", "bot": "assistant"}


def render(messages: Iterable[tuple[str, str]]) -> str:
    """The transcript of messages, each a role and a text. Empty without messages."""
    return "".join(f"{_name_speaker(role)}: {text.strip()}\n" for role, text in messages)


def _name_speaker(role: str) -> str:
    """The name of a role's speaker. A role that is not known, such as "alice", is itself the name."""
    return SPEAKERS.get(_ROLES.get(role.lower(), role.lower()), role.capitalize())
