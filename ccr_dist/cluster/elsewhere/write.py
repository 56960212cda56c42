"""`ccr-dist submit --to kubernetes|skypilot`: checks a pipeline, and writes a file for each step and a README with the
commands that start them in their order. Starts nothing.
"""

from __future__ import annotations

import difflib
import shlex
import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ccr_dist.cluster import checks
from ccr_dist.cluster.elsewhere import kubernetes, skypilot
from ccr_dist.cluster.elsewhere.sections import Kubernetes, SkyPilot
from ccr_dist.cluster.elsewhere.steps import SLURM_ONLY, exposed, unused, wrong
from ccr_dist.cluster.elsewhere.text import yaml_text
from ccr_dist.cluster.pipeline import Plan
from ccr_dist.cluster.profile import Profile
from ccr_dist.data.storage.store import replace_atomic
from ccr_dist.errors import ConfigError
from ccr_dist.places import folder_to_make
from ccr_dist.redact import command_line

Say = Callable[[str], None]
SLURM, KUBERNETES, SKYPILOT = "slurm", "kubernetes", "skypilot"
TARGETS = (SLURM, KUBERNETES, SKYPILOT)
EXAMPLE = "an example is slurm/profiles/{}.yaml"


def known_target(name: str) -> str:
    """Check the value of `--to`.

    Raises:
        ConfigError: There is no such scheduler; names the nearest one.
    """
    if name in TARGETS:
        return name
    near = difflib.get_close_matches(name.lower(), TARGETS, 1, cutoff=0.5)
    raise ConfigError(
        f"--to {name!r}: {f'did you mean {near[0]!r}? ' if near else ''}expected one of {', '.join(TARGETS)}"
    )


def write(plan: Plan, profile: Profile, *, to: str, named: str, out: Path | None, say: Say) -> Path:
    """Check everything that can be checked here, and write the files.

    Args:
        plan: The pipeline.
        profile: The site profile.
        to: `kubernetes` or `skypilot`.
        named: What the user calls the profile.
        out: New or empty folder; None: a folder below that of the pipeline.
        say: Prints a message for the user.

    Returns:
        The folder.

    Raises:
        ConfigError: The pipeline, the profile or the folder will not do; lists all problems.
    """
    files, notes = rendered(plan, profile, to=to, named=named)
    folder = out or plan.run / to
    folder_to_make(folder)
    if folder.is_dir() and any(folder.iterdir()):
        raise ConfigError(f"{folder}: not empty, and nothing there is overwritten: remove it, or name another --out")
    for note in notes:
        say(note)
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        replace_atomic(folder / name, text.encode())
    say(f"{folder}: {len(plan.jobs)} step(s); nothing was started: {folder / 'README.md'} has the commands")
    return folder


def rendered(plan: Plan, profile: Profile, *, to: str, named: str) -> tuple[dict[str, str], list[str]]:
    """The files of a pipeline by name, and notes for the user. Arguments and errors as for `write`."""
    site = profile.kubernetes if to == KUBERNETES else profile.skypilot
    if site is None:
        raise ConfigError(f"profile {named}: no section `{to}`, which --to {to} needs; {EXAMPLE.format(to)}")
    checked = checks.check(plan, free_disk_gib=None)
    if isinstance(site, Kubernetes):
        problems = list(wrong(plan, target="Kubernetes", gpu=site.gpu, key="kubernetes.gpu, such as nvidia.com/gpu"))
        checks.grace(plan, checked, profile, lead=False)
        skipped: tuple[str, ...] = (*SLURM_ONLY, "setup")
        objects = {name: kubernetes.step_object(plan, job, profile, site) for name, job in plan.jobs.items()}
    else:
        problems = list(wrong(plan, target="SkyPilot", gpu=site.accelerator, key="skypilot.accelerator, such as H100"))
        skipped = (*SLURM_ONLY, "grace_s", "throttle")
        objects = {name: skypilot.step_task(plan, job, profile, site) for name, job in plan.jobs.items()}
    if problems:
        raise ConfigError("\n".join(problems))
    digits = len(str(len(objects)))
    names = {step: f"{number:0{max(digits, 2)}}-{step}.yaml" for number, step in enumerate(objects, start=1)}
    files = {names[step]: yaml_text(found) for step, found in objects.items()}
    if isinstance(site, SkyPilot):
        whole = [yaml_text({"name": kubernetes.name_of(plan.pipeline.name, "all")}), *files.values()]
        files["all.yaml"] = "---\n".join(whole)
    readme = _kubernetes_readme if isinstance(site, Kubernetes) else _skypilot_readme
    files["README.md"] = readme(plan, site, objects, names)  # type: ignore[arg-type]
    return files, list(dict.fromkeys([*checked.notes, *unused(plan, profile, skipped, to), *exposed(plan, profile)]))


def _kubernetes_readme(plan: Plan, site: Kubernetes, objects: Mapping[str, Any], names: Mapping[str, str]) -> str:
    where = ["-n", site.namespace] if site.namespace else []
    lines, awaited = list[str](), set[str]()
    for step, job in plan.jobs.items():
        for before in job.after:
            if before not in awaited:
                lines.append(_wait(objects[before], where))
                awaited.add(before)
        lines.append(shlex.join(["kubectl", *where, "apply", "-f", names[step]]))
    sets = any(each["kind"] == "JobSet" for each in objects.values())
    needs = [
        f"the claims {', '.join(volume.claim for volume in site.volumes)}, which several pods can mount",
        f"what the steps read, at the same paths below `{site.folder}`: configs, datasets, weights",
        *(["the JobSet controller, 0.10 or newer, for trainings"] if sets else []),
    ]
    return _readme(
        plan,
        "Kubernetes",
        [f"The cluster (1.29 or newer) needs {'; '.join(needs)}."],
        lines,
        [
            "Kubernetes does not know the order of steps: `kubectl wait` keeps it. It goes on waiting for a step that"
            " has failed; `kubectl get jobs,jobsets` shows those.",
            "To stop a step, delete it (`kubectl delete -f FILE`): its processes save what they have. Applied again, it"
            " continues. Do not make a file `stop`: its process would be started again and again.",
        ],
    )


def _wait(found: Mapping[str, Any], where: list[str]) -> str:
    kind, done = ("jobset", "Completed") if found["kind"] == "JobSet" else ("job", "Complete")
    name = f"{kind}/{found['metadata']['name']}"
    return shlex.join(["kubectl", *where, "wait", f"--for=condition={done}", "--timeout=-1s", name])


def _skypilot_readme(plan: Plan, site: SkyPilot, objects: Mapping[str, Any], names: Mapping[str, str]) -> str:
    secrets = [word for name in site.secrets for word in ("--secret", name)]
    lines = [
        "# all steps, one after the other:",
        shlex.join(["sky", "jobs", "launch", *secrets, "all.yaml"]),
        "# or step by step:",
        *(shlex.join(["sky", "jobs", "launch", *secrets, names[step]]) for step in plan.jobs),
    ]
    mounted = ", ".join([*site.volumes, *site.mounts])
    return _readme(
        plan,
        "SkyPilot",
        [
            f"All nodes need `{site.folder}` on storage that they share and that has hard links (a volume, NFS; no"
            f" mounted bucket){f'; mounted are {mounted}' if mounted else ''}. What the steps read lies"
            " there at the same paths: configs, datasets, weights.",
        ],
        lines,
        [
            "To stop a step: `sky jobs cancel ID`. Launched again, it continues. Do not make a file `stop`: its"
            " process would be started again and again.",
            "SkyPilot starts a step again whatever its exit code says, as often as `max_restarts_on_errors`; also one"
            " whose config is wrong.",
        ],
    )


def _readme(plan: Plan, target: str, needs: list[str], lines: list[str], notes: list[str]) -> str:
    steps = [
        f"{name}{' after ' if job.after else ''}{', '.join(job.after)}: ccr-dist {command_line(job.command)}"
        for name, job in plan.jobs.items()
    ]
    prose = [f"Written by `ccr-dist submit --to {target.lower()}`. Nothing was started.", *needs]
    parts = [
        f"# {plan.pipeline.name} on {target}",
        *map(_filled, prose),
        "\n".join(["```bash", *lines, "```"]),
        *map(_filled, notes),
        "## Steps",
        "\n".join(["```text", *steps, "```"]),
    ]
    return "\n\n".join(parts) + "\n"


def _filled(text: str) -> str:
    return textwrap.fill(text, 100, break_long_words=False, break_on_hyphens=False)
