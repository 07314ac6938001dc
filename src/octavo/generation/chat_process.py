"""Renders chat templates in a separate process: `chat.py` starts it, and ends it if a template takes too long.

A template comes with a checkpoint, so it may be hostile. Jinja2's sandbox keeps it from the attributes of Python's
objects, but not from endless loops and huge values: so this process has a memory limit and can be killed. Each line of
stdin is a JSON object with `template` and `values`; each line of stdout is the answer, one with `text` or `error`.

This file is run as a script, and imports nothing of Octavo.
"""

import datetime
import functools
import json
import sys
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

MEMORY = 512 << 20  # bytes of address space
MAX_CHARACTERS = 4 << 20  # of a rendered text


class _Generation(Extension):
    """`{% generation %}`, with which transformers marks what a model is trained on. Only its body is rendered."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Scope:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _to_json(value: Any, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=False, indent=options.get("indent"))  # Jinja2's own escapes HTML


@functools.lru_cache(maxsize=8)
def _compile(template: str) -> jinja2.Template:
    """Compile a template as transformers does."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda format: datetime.datetime.now().strftime(format)
    return environment.from_string(template)


def _render(template: str, values: dict[str, Any]) -> str:
    pieces, length = [], 0
    for piece in _compile(template).generate(**values):
        length += len(piece)
        if length > MAX_CHARACTERS:
            raise jinja2.TemplateError(f"the text has more than {MAX_CHARACTERS:,} characters")
        pieces.append(piece)
    return "".join(pieces)


def _limit_memory() -> None:
    try:
        import resource
    except ImportError:  # Windows: there is only the time limit
        return
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _main() -> None:
    _limit_memory()
    answer: dict[str, str] = {"text": ""}  # the first answer says that the process is ready
    while True:
        sys.stdout.buffer.write(json.dumps(answer).encode() + b"\n")  # in ASCII: a text may have unpaired surrogates
        sys.stdout.buffer.flush()
        if not (line := sys.stdin.buffer.readline()):
            return
        try:
            answer = {"text": _render(**json.loads(line))}
        except MemoryError:
            answer = {"error": "it needs too much memory"}
        except RecursionError:
            answer = {"error": "it is nested too deeply"}
        except Exception as error:  # whatever a template raises is the template's fault
            answer = {"error": f"{error}"[:500] or type(error).__name__}


if __name__ == "__main__":
    _main()
