"""The digest of a step: of its command, the contents of the files that it reads, and the steps before it.

Commands declare what they read and make (`declare.py`). Outputs of other steps change as the pipeline runs, so they are
identified by the step that makes them, not by their contents.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ccr_dist import yamlfile
from ccr_dist.cluster.made import holds, is_url
from ccr_dist.cluster.pipeline import Job, Plan
from ccr_dist.data.storage.store import digest_json, sha256_file
from ccr_dist.declare import Item, Run, Settings, Table, Uses
from ccr_dist.errors import ConfigError

RULE = 2  # version of this digest; digests without one follow the earlier rule (`Earlier`)
WHOLE = 64 * 2**20  # larger files (weights) are not read, but identified by size and time
OUTPUTS = ("--out", "-o", "out")
# commands whose outputs the earlier rule knew
KNOWN = ("train", "describe", "translate", "featurise", "replay", "shards build", "shards index")


def digest(job: Job, files: Mapping[str, str], before: Mapping[str, Any]) -> str:
    """The digest of a step.

    Args:
        job: The step.
        files: Digests of its files (`contents`).
        before: What identifies each step before it.
    """
    return digest_json({"rule": RULE, "command": job.command, "files": files, "after": before})


def contents(plan: Plan, uses: Mapping[str, Uses], step: str) -> dict[str, str]:
    """Digests of the files that a step reads and no other step makes, by path."""
    made = [item for name, other in uses.items() if name != step for item in other.makes]
    if step not in uses:
        return {}
    found = {path for item in uses[step].reads for path in _files(item)}
    return {
        str(path): content(path)
        for path in sorted(found)
        if not path.absolute().is_relative_to(plan.run.absolute()) and not any(holds(item, str(path)) for item in made)
    }


def _files(item: Item) -> Iterator[Path]:
    """The files that identify an input: the file itself, those that a YAML file names, the weights of a run, the plans
    of a dataset.
    """
    path = Path(item.path)
    if is_file(item.path):
        yield path
        if isinstance(item, Settings):
            yield from named(path, item.overrides)
    elif isinstance(item, Run):
        yield from filter(Path.is_file, [path / "model.safetensors"])
    elif isinstance(item, Table) and not is_url(item.path):
        names = ("dataset.json", *([] if item.column is None else [f"{item.column}/column.json"]))
        yield from (file for name in names for file in (path / name, *path.glob(f"*/{name}")) if file.is_file())


def named(path: Path, overrides: tuple[str, ...] = ()) -> Iterator[Path]:
    """Files that values of a YAML file name, relative to the working folder or to its own."""
    for text in texts(merged(path, overrides)):
        for place in {Path(), path.parent}:
            if is_file(str(place / text)):
                yield place / text


def is_file(text: str) -> bool:
    """Whether a text is the path of a file."""
    try:
        return bool(text) and Path(text).is_file()
    except (OSError, ValueError):  # no name that a file can have
        return False


def texts(value: Any) -> Iterator[str]:
    """All strings in a value, at any depth."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from texts(each)


def merged(path: Path, overrides: tuple[str, ...] = ()) -> Any:
    """The values of a YAML file with its bases; None if it is no such file."""
    try:
        return yamlfile.load(path, overrides).data
    except ConfigError:
        return None


def content(path: Path) -> str:
    """The digest of a file; for YAML, of its values and bases, independent of layout."""
    said = merged(path) if path.suffix in (".yaml", ".yml") else None
    if said is not None:
        return digest_json(said) if _is_json(said) else repr(said)
    facts = path.stat()
    return sha256_file(path) if facts.st_size <= WHOLE else f"{facts.st_size} bytes of {facts.st_mtime_ns}"


def _is_json(value: Any) -> bool:
    try:
        digest_json(value)
    except (TypeError, ValueError):  # dates, NaN
        return False
    return True


class Earlier:
    """The rule before commands declared what they read; only for attempts and submissions of that time.

    A file counted if a word of the command (except `--out`) or a YAML file named it, unless it was in a folder that
    some step makes. So a step that was done then stays done, as long as these files have not changed.

    Args:
        plan: The pipeline.
        uses: What each step reads and makes.

    Attributes:
        planned: A digest of each step's task.
    """

    def __init__(self, plan: Plan, uses: Mapping[str, Uses]) -> None:
        made = _made_earlier(plan, uses)
        self._jobs = plan.jobs
        self._files = {
            name: {path: content(Path(path)) for path in sorted(set(_files_earlier(job, made)))}
            for name, job in plan.jobs.items()
        }
        self.planned: dict[str, str] = {}
        for name, job in plan.jobs.items():
            self.planned[name] = self.digest(name, {before: self.planned[before] for before in job.after})

    def digest(self, step: str, before: Mapping[str, Any]) -> str:
        """The digest of a step.

        Args:
            step: Name of the step.
            before: What identifies each step before it.
        """
        return digest_json({"command": self._jobs[step].command, "files": self._files[step], "after": before})


def _made_earlier(plan: Plan, uses: Mapping[str, Uses]) -> list[Path]:
    folders = {plan.run}
    for name, of_step in uses.items():
        command = plan.jobs[name].command
        if command[0] in KNOWN or " ".join(command[:2]) in KNOWN:
            folders |= {Path(item.path) for item in of_step.makes if isinstance(item, Run | Table)}
        elif command[0] == "checkpoint":
            folders |= {Path(item.path) for item in of_step.makes}
    return [folder.absolute() for folder in folders]


def _files_earlier(job: Job, made: Sequence[Path]) -> Iterator[str]:
    for before, word in zip(("", *job.command), job.command, strict=False):
        key, sign, value = word.partition("=")
        if before not in OUTPUTS and (not sign or key not in OUTPUTS):
            yield from _named_earlier(value if sign and not is_file(word) else word, Path(), made, deep=True)


def _named_earlier(text: str, folder: Path, made: Sequence[Path], *, deep: bool) -> Iterator[str]:
    path = folder / text
    if not is_file(str(path)) or any(path.absolute().is_relative_to(place) for place in made):
        return
    yield str(path)
    if deep and path.suffix in (".yaml", ".yml"):
        for leaf in texts(merged(path)):
            for place in {Path(), path.parent}:
                yield from _named_earlier(leaf, place, made, deep=False)
