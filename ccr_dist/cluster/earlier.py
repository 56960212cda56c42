"""The digests of steps as they were made before commands declared what they read: for attempts and submissions of that
time alone.

A file counted where a word of the command named it (the option `--out` aside) or a YAML file did, unless it lay in a
folder that some step makes. So a step that was done then stays done, for as long as what it was held against then has
not changed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ccr_dist.cluster.filedigest import content, is_file, merged, texts
from ccr_dist.cluster.pipeline import Job, Plan
from ccr_dist.data.storage.store import digest_json
from ccr_dist.declare import Run, Table, Uses

OUTPUTS = ("--out", "-o", "out")
# whose outputs were known
KNOWN = ("train", "describe", "translate", "featurise", "replay", "shards build", "shards index")


class Rule:
    """The earlier rule for one plan.

    Attributes:
        planned: of each step a digest of what is asked for.
    """

    def __init__(self, plan: Plan, uses: Mapping[str, Uses]) -> None:
        made = _made(plan, uses)
        self._jobs = plan.jobs
        self._files = {
            name: {path: content(Path(path)) for path in sorted(set(_files(job, made)))}
            for name, job in plan.jobs.items()
        }
        self.planned: dict[str, str] = {}
        for name, job in plan.jobs.items():
            self.planned[name] = self.digest(name, {before: self.planned[before] for before in job.after})

    def digest(self, step: str, before: Mapping[str, Any]) -> str:
        """Of a step after these ones."""
        return digest_json({"command": self._jobs[step].command, "files": self._files[step], "after": before})


def _made(plan: Plan, uses: Mapping[str, Uses]) -> list[Path]:
    folders = {plan.run}
    for name, of_step in uses.items():
        command = plan.jobs[name].command
        if command[0] in KNOWN or " ".join(command[:2]) in KNOWN:
            folders |= {Path(item.path) for item in of_step.makes if isinstance(item, Run | Table)}
        elif command[0] == "checkpoint":
            folders |= {Path(item.path) for item in of_step.makes}
    return [folder.absolute() for folder in folders]


def _files(job: Job, made: Sequence[Path]) -> Iterator[str]:
    for before, word in zip(("", *job.command), job.command, strict=False):
        key, sign, value = word.partition("=")
        if before not in OUTPUTS and (not sign or key not in OUTPUTS):
            yield from _named(value if sign and not is_file(word) else word, Path(), made, deep=True)


def _named(text: str, folder: Path, made: Sequence[Path], *, deep: bool) -> Iterator[str]:
    path = folder / text
    if not is_file(str(path)) or any(path.absolute().is_relative_to(place) for place in made):
        return
    yield str(path)
    if deep and path.suffix in (".yaml", ".yml"):
        for leaf in texts(merged(path)):
            for place in {Path(), path.parent}:
                yield from _named(leaf, place, made, deep=False)
