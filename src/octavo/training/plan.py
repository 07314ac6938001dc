"""What to train: resolved settings, where the weights come from, where the run is saved.

Planning reads settings only, never the text or the weights. It writes nothing, except that it copies a run that is
resumed from a URL.
"""

import dataclasses
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from octavo import remote
from octavo.checkpoint import Checkpoint
from octavo.errors import OctavoError, OctavoWarning
from octavo.interop.nanogpt import find_file
from octavo.mirror import fetch_run
from octavo.runs import Run, RunLike, find_run, resolve_name
from octavo.settings import Settings, SourceLike, as_source, given_names, list_sources, nanogpt, resolve
from octavo.training.fixed_settings import check_given, settings_of_run


@dataclass(frozen=True)
class Plan:
    """A training run that has not started. `plan` builds and checks it, `octavo.training.events` carries it out."""

    settings: Settings
    resume: tuple[Path, ...] = ()  # checkpoint folders; training resumes from the first that is not damaged
    init: RunLike | None = None  # the run or checkpoint whose weights a new run starts from
    out: str | Path | None = None  # the folder of a new run; runs/NAME by default
    name: str | None = None  # NAME; by default the name of the corpus and the next free number
    given: Mapping[str, Any] = field(default_factory=dict)  # settings from keywords and a TOML file, not from a preset
    mirror: str | None = None  # the URL that the run is copied to


def plan(
    source: SourceLike | None = None,
    *,
    preset: str | None = None,
    config: str | Path | None = None,
    resume: RunLike | None = None,
    init: RunLike | None = None,
    out: str | Path | None = None,
    name: str | None = None,
    continue_run: bool = False,
    mirror: str | None = None,
    **settings: Any,
) -> Plan:
    """Resolve settings from a preset, a TOML file and keywords, or from the run that is resumed.

    If `resume` is the URL of a copy of a run, it is first copied to `out`, or to runs/`name`; by default, the name is
    that of the copy.

    With `continue_run`, the run `out` or `name` is resumed if it exists, with its own preset, config and init, and
    created otherwise: the same command may be given again and again.

    Raises `OctavoError` for an unknown setting or value, and for a setting that cannot change when a run is resumed.
    """
    if source is not None:
        settings["source"] = as_source(source)
    if resume is None and (path := _find_nanogpt_config(settings, config)) is not None:
        config = None
        recipe = nanogpt.translate(nanogpt.read_config(path))
        preset, init = preset or recipe.preset, init or recipe.init
        settings = recipe.settings | settings
        warnings.warn(f"{path} is a config of nanoGPT: {recipe.command()}", OctavoWarning, stacklevel=2)
    if mirror is not None and not remote.is_url(mirror):
        raise OctavoError(f"the mirror {mirror} is not a URL", "s3://BUCKET/NAME, gs://BUCKET/NAME or file:///FOLDER")
    if remote.is_url(out):
        raise OctavoError(f"{out} is a URL, and a run is trained in a folder", f"--mirror {out}, which copies it there")
    if isinstance(resume, str) and remote.is_url(resume):
        folder = Path(out) if out is not None else Path("runs", name or resume.rstrip("/").rpartition("/")[2])
        fetch_run(resume, folder)
        resume, out, name = folder, None, None
    if continue_run:
        if out is None and name is None:
            raise OctavoError("the run to continue or create is not named", "--name NAME or --out FOLDER")
        existing = find_run(Path("runs", str(name)) if out is None else out)
        if existing is not None:
            return plan(resume=existing, mirror=mirror, **settings)
    if resume is not None:
        if preset is not None or config is not None or init is not None:
            raise OctavoError(
                "a resumed run keeps its settings: no preset, config or init",
                "--resume RUN with only the settings that change",
            )
        if out is not None or name is not None:
            raise OctavoError("a resumed run stays in its folder", "leave out --out and --name")
        run, checkpoints = find_resumable(resume)
        changed = _changed_settings(run, settings)
        if not checkpoints:
            return Plan(changed, init=run.init, out=run.folder, given=settings, mirror=mirror)
        return Plan(changed, resume=checkpoints, given=settings, mirror=mirror)
    if init is not None:
        # A config may name its own preset, which a preset given to `resolve` would override.
        preset = preset or ("finetune" if config is None else None)
    resolved = resolve(preset, config, **settings)
    given = {name: getattr(resolved, name) for name in given_names(config, **settings)}
    return Plan(resolved, init=init, out=out, name=name, given=given, mirror=mirror)


def _find_nanogpt_config(settings: dict[str, Any], config: str | Path | None) -> str | Path | None:
    """The nanoGPT config file: `config`, or one of the sources, from which it is removed. None if neither is one."""
    if config is not None:
        return config if str(config).endswith(".py") else None
    sources = list_sources(settings.get("source", ()))
    path = next(filter(nanogpt.is_config, sources), None)
    if path is not None:
        sources.remove(path)
        del settings["source"]
        settings |= {"source": as_source(sources)} if sources else {}
    return path


def find_resumable(resume: RunLike) -> tuple[Run, tuple[Path, ...]]:
    """Find a run and the checkpoints to resume it from, the preferred one first.

    If `resume` is a checkpoint instead of a run, it is the only one.

    A run that was killed before its first checkpoint has none: it starts again in its folder, from the same weights.
    """
    resume = resume if isinstance(resume, Checkpoint) else resolve_name(resume)
    run = find_run(resume)
    if run is None:
        folder = resume.folder if isinstance(resume, Checkpoint | Run) else Path(resume)
        owner = Run.of_checkpoint(folder)
        if owner is not None and (folder / "config.json").is_file():
            return owner, (folder,)
        if (foreign := find_file(folder)) is not None:
            hint = f"octavo train SOURCE --init {foreign}, which starts a new run from its weights"
            raise OctavoError(f"{folder} is a checkpoint of nanoGPT, not a run of Octavo", hint)
        run = Run(folder)  # always raises here: the error says why the folder is not a run
    if not run.resumable and not run.is_unstarted:
        new_run = f"--init {run.folder}, which starts a new run from its weights"
        hint = new_run if run.checkpoints else "wait for its first one"
        raise OctavoError(f"{run.folder} has no checkpoint to resume from", hint)
    return run, tuple(run.resumable)


def _changed_settings(run: Run, changes: dict[str, Any]) -> Settings:
    """Apply changes to a run's settings. Raises `OctavoError` for one that must stay."""
    before = run.settings
    if changes.get("device", before.device) != before.device:  # precision and compile were chosen for the other device
        changes = {"precision": "auto", "compile": "auto"} | changes
    fixed = settings_of_run(before)
    check_given(changes, fixed, f"the run {run.folder}")
    return resolve(**{**dataclasses.asdict(before), **changes, **fixed})
