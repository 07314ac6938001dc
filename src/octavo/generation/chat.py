"""Turns a conversation into a prompt: with the checkpoint's chat template, or as a plain transcript.

A plain transcript is what a model without a chat template gets, one line for each message:

    System: You are a bear.
    User: What do you eat?
    Assistant:

The answer ends where the model begins a speaker's next line. If the tokenizer cannot encode a character of a speaker's
name, the character is left out.

A special token's text in the template becomes that token; in a message it stays ordinary text: a user can't begin a
system message by typing `<|im_start|>system`.
"""

import atexit
import contextlib
import functools
import json
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from octavo.errors import OctavoError
from octavo.generation.prompt import Prompt, encode_prompt
from octavo.tokenizers import Tokenizer
from octavo.transcript import SPEAKERS


@dataclass(frozen=True)
class Message:
    """One message of a conversation. `role` is one of `SPEAKERS`."""

    role: str
    content: str


class ChatTemplateError(OctavoError):
    """The chat template rejects the conversation, or is not usable."""


class ConversationTooLongError(OctavoError):
    """The newest turn and the messages before the first turn do not fit into the context."""


class ChatFormat:
    """How a model's conversations are written: `template` is a Jinja2 template; None: a plain transcript."""

    def __init__(self, tokenizer: Tokenizer, template: str | None = None) -> None:
        self._tokenizer, self._template = tokenizer, template
        self.stop = () if template else self._transcript_stops()

    def check(self) -> None:
        """Raise `ChatTemplateError` if the template cannot write the shortest conversation."""
        if self._template:
            self._render(self._template, [Message("user", "Hello")])

    def encode(self, messages: Sequence[Message], max_tokens: int) -> Prompt:
        """Encode a conversation as a prompt for the assistant's next message.

        If the prompt has more than `max_tokens`, the oldest turns are left out, but not the messages before the first
        turn (system). A turn begins with a message of the user. Raises `ConversationTooLongError` if the prompt is
        still too long with only the newest turn, `ChatTemplateError` if the template rejects the messages, and
        `UnknownCharactersError` if the tokenizer does not know a character.
        """
        turns = [i for i, message in enumerate(messages) if message.role == "user"]
        first = turns[0] if turns else len(messages)

        def encode_from(turn: int) -> Prompt | None:
            """The prompt without the turns before this one; None if it is too long."""
            kept = [*messages[:first], *messages[turns[turn] :]] if turn else messages
            return self._encode_if_short(kept, max_tokens)

        best, low, high = encode_from(0), 1, len(turns)
        if best is not None:
            return best
        while low < high:  # a binary search for the oldest turn from which the prompt fits
            middle = (low + high) // 2
            if (prompt := encode_from(middle)) is None:
                low = middle + 1
            else:
                best, high = prompt, middle
        if best is None:
            raise ConversationTooLongError(
                f"the conversation does not fit into {max_tokens:,} tokens, even without its earlier turns"
            )
        return best

    def _encode_if_short(self, messages: Sequence[Message], max_tokens: int) -> Prompt | None:
        """The prompt of these messages; None if it has more than `max_tokens`."""
        parts = [self._transcript(messages)] if self._template is None else self._render_parts(self._template, messages)
        if sum(map(len, parts)) > max_tokens * max(map(len, self._tokenizer.token_bytes)):
            return None  # far too long: not worth encoding
        prompt = self._encode_parts(parts)
        return prompt if len(prompt.ids) <= max_tokens else None

    def _render_parts(self, template: str, messages: Sequence[Message]) -> list[str]:
        """The rendered text in parts: ordinary text, special token, ordinary text, ...

        While the template is rendered, placeholders replace the texts of special tokens in the messages, so that only
        those of the template itself become special tokens.
        """
        special = self._tokenizer.special_texts
        if not special:
            return [self._render(template, messages)]
        nonce = f"\ue000{secrets.randbits(64)}\ue001"
        pattern = self._tokenizer.special_pattern
        placeholders = {text: f"{nonce}{i}\ue002" for i, text in enumerate(special)}
        replaced = [Message(m.role, pattern.sub(lambda match: placeholders[match[0]], m.content)) for m in messages]
        parts = pattern.split(self._render(template, replaced))
        for text, placeholder in placeholders.items():
            parts[::2] = [part.replace(placeholder, text) for part in parts[::2]]
        return parts

    def _encode_parts(self, parts: Sequence[str]) -> Prompt:
        tokenizer = self._tokenizer
        ids = [
            id
            for i, part in enumerate(parts)
            for id in (tokenizer.encode(part, special_tokens=bool(i % 2)).tolist() if part else [])
        ]
        return Prompt("".join(parts), ids) if ids else encode_prompt(tokenizer, "")

    def _render(self, template: str, messages: Sequence[Message]) -> str:
        named = self._tokenizer.special_tokens_map
        special_tokens = {name: token for name, token in named.items() if isinstance(token, str)}
        values = {"messages": [vars(message) for message in messages], "add_generation_prompt": True}
        return template_process().render(template, special_tokens | values)

    def _transcript(self, messages: Sequence[Message]) -> str:
        lines = [f"{self._keep_known(f'{SPEAKERS[m.role]}: ')}{m.content.strip()}" for m in messages]
        return self._keep_known("\n").join([*lines, self._keep_known("Assistant:")])

    def _transcript_stops(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(filter(None, (self._keep_known(f"\n{name}:") for name in SPEAKERS.values()))))

    def _keep_known(self, text: str) -> str:
        """The text without the characters that the tokenizer does not know."""
        return self._tokenizer.decode(self._tokenizer.encode(text, unknown="skip"))


_TOO_MUCH = "the chat template of this model takes too much time or memory"


class TemplateProcess:
    """The process that renders templates. It is started for the first template, and again after it has been killed."""

    def __init__(self, seconds: float = 2, pause: float = 60) -> None:
        """A template may take `seconds`. One that takes longer is rejected at once for the next `pause` seconds."""
        self._seconds, self._pause = seconds, pause
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        self._rejected_until: dict[str, float] = {}

    def render(self, template: str, values: dict[str, object]) -> str:
        """Raises `ChatTemplateError` if the template raises an error, or takes too much time or memory."""
        request = json.dumps({"template": template, "values": values}).encode() + b"\n"
        with self._lock:
            if self._rejected_until.get(template, 0) > time.monotonic():
                raise ChatTemplateError(_TOO_MUCH)
            if self._process is None:
                self._process = self._start()
            answer = self._exchange(self._process, request, self._seconds)
            if answer is None:
                self._process = None
                self._rejected_until = {template: time.monotonic() + self._pause}
                raise ChatTemplateError(_TOO_MUCH)
        if "error" in answer:
            raise ChatTemplateError(f"the chat template rejects these messages: {answer['error']}")
        return answer["text"]

    def close(self) -> None:
        with self._lock:
            if self._process is not None:
                _end(self._process)
            self._process = None

    def _start(self) -> "subprocess.Popen[bytes]":
        # -P keeps the script's folder out of `sys.path`.
        command = [sys.executable, "-P", str(Path(__file__).with_name("chat_process.py"))]
        pipe, null = subprocess.PIPE, subprocess.DEVNULL
        # In a new session the process gets no Ctrl-C. It ends when Octavo ends, which closes its stdin.
        process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=null, start_new_session=True)
        if self._exchange(process, b"", 60) is None:
            raise ChatTemplateError("the process that renders chat templates cannot be started")
        return process

    @staticmethod
    def _exchange(process: "subprocess.Popen[bytes]", request: bytes, seconds: float) -> dict[str, str] | None:
        """Send a request and return the answer. None if the process has ended, or is ended because it takes longer."""
        assert process.stdin is not None
        assert process.stdout is not None
        timer = threading.Timer(seconds, process.kill)  # on Windows, a read from a pipe cannot time out
        timer.start()
        try:
            process.stdin.write(request)
            process.stdin.flush()
            line = process.stdout.readline()
        except OSError:
            line = b""
        finally:
            timer.cancel()
        if not line.endswith(b"\n"):
            _end(process)
            return None
        answer: dict[str, str] = json.loads(line)
        return answer


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        with contextlib.suppress(OSError):
            if pipe is not None:
                pipe.close()


@functools.cache
def template_process() -> TemplateProcess:
    """The process that all models share."""
    process = TemplateProcess()
    atexit.register(process.close)
    return process
