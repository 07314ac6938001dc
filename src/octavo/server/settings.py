"""The settings of `octavo serve`."""

import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from octavo.errors import OctavoError
from octavo.server import log


@dataclass(frozen=True, kw_only=True)
class ServeSettings:
    """How models are served. See `octavo serve --help`."""

    host: str = "127.0.0.1"
    port: int = 8000  # 0: any free port
    follow: bool = True  # serve newer checkpoints of a run that is still training
    root_path: str = ""  # the path prefix at a proxy, such as /octavo
    api_key_file: str | Path | None = None  # a key on each line, or a name and a key
    rate_limit: int = 0  # requests of each key in a minute; 0: unlimited
    token_limit: int = 0  # tokens of each key in a minute, of prompts and texts; 0: unlimited
    log_format: str = "text"  # or json: one object on each line
    log_level: str = "info"  # debug: also requests for the page, probes and metrics
    allow_hosts: Collection[str] = ()  # host names to answer to, besides those of this machine
    allow_origins: Collection[str] = ()  # sites whose web pages may use the server
    chat_template: str | Path | None = None  # a file with a Jinja2 template, in place of the checkpoints' own
    docs: bool = False  # describe the API at /docs
    device: str = "auto"
    quantize: str = "none"
    slots: int = 8  # completions that each model generates at once
    queue: int = 64  # the most completions that may wait for a slot, for each model; beyond that, 429
    prefix_cache: int = 256  # MiB, for each model
    overflow: str = "stop"  # what happens when the context is full; `octavo.generation.engine` explains the choices

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise OctavoError(f"port={self.port} is not between 0 and 65535", "--port 8000, or 0 for any free port")
        if self.root_path and not re.fullmatch(r"(/[\w.~-]+)+", self.root_path):
            raise OctavoError(f"root_path={self.root_path!r} is not a path such as /octavo", "--root-path /octavo")
        for name in ("rate_limit", "token_limit"):
            if not 0 <= getattr(self, name) <= 10**9:
                flag = f"--{name.replace('_', '-')}"
                raise OctavoError(
                    f"{name}={getattr(self, name)} is not between 0 and a billion", f"{flag} 60, or 0 for no limit"
                )
        log.check(self.log_format, self.log_level)
        if not 1 <= self.slots <= 1024:
            raise OctavoError(f"slots={self.slots} is not between 1 and 1024", "--slots 8")
        if not 0 <= self.queue <= 10**6:
            raise OctavoError(f"queue={self.queue} is not between 0 and a million", "--queue 64")
        if not 0 <= self.prefix_cache <= 1 << 20:
            raise OctavoError(
                f"prefix_cache={self.prefix_cache} is not a number of MiB from 0 to a million", "--prefix-cache 256"
            )
