"""A chat as plain text: a line with the speaker's name before each message.

    User: How do owls fly?

    Assistant: In silence.

The same form serves to train on chat exports and to prompt a model that has no chat template of its own.
"""

from collections.abc import Iterable

# The roles of chat programs, and who is named as the speaker. Any other role is named as it is.
SPEAKERS = {
    "system": "System",
    "developer": "System",
    "user": "User",
    "human": "User",
    "assistant": "Assistant",
    "gpt": "Assistant",
    "model": "Assistant",
    "bot": "Assistant",
}


def render(messages: Iterable[tuple[str, str]]) -> str:
    """The transcript of messages, each a role and a text. Empty if there are none."""
    turns = [f"{SPEAKERS.get(role.lower(), role.capitalize())}: {text.strip()}\n" for role, text in messages]
    return "\n".join(turns)
