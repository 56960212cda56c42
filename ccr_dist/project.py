"""`ccr-dist init`: a project folder for people who installed ccr-dist and have no checkout.

It gets copies of shipped files at the same paths as in a checkout, so that paths such as `configs/...` and `launch/...`
in documentation and messages are valid there.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path

from ccr_dist import resources, yamlfile
from ccr_dist.errors import ConfigError

CONFIGS = ("demo", "clip")
PIPELINE = "pipelines/emoji14.yaml"
SITE = Path("slurm/mysite.yaml")
README = """\
# A ccr-dist project

Start all commands in this folder: paths in configs begin here. All files are yours to edit.

- `configs/demo/`, `configs/clip/`: run configs; files with `_` are bases of others.
  `ccr-dist config show configs/clip/dasd.yaml` prints all that one says.
- `configs/pipelines/emoji14.yaml`: a whole experiment. `ccr-dist run PIPELINE` carries it out on this machine,
  `ccr-dist submit PIPELINE --profile slurm/mysite.yaml` on a SLURM cluster; add `--dry-run` to check it first.
- `slurm/mysite.yaml`: what your cluster calls its partitions and GPUs, and which Python its nodes use.
- `launch/accelerate/`: how processes are started, and which strategy they train with:
  `accelerate launch --config_file launch/accelerate/ddp.yaml --num_processes 2 -m ccr_dist train CONFIG`

Your own pictures: `ccr-dist shards build folder --out data/mine images=PICTURES captions=CAPTIONS.csv`,
then `configs/clip/`.
What this environment lacks for training, if anything: `ccr-dist doctor`.
"""


def known() -> list[str]:
    """Names of the folders of configs that come with ccr-dist."""
    return sorted(path.name for path in resources.folder("configs").iterdir() if any(path.glob("*.yaml")))


def files(configs: Iterable[str] = CONFIGS) -> dict[Path, bytes]:
    """The files of a project.

    Args:
        configs: Folders of configs, from `known`.

    Returns:
        Content by path in the project.

    Raises:
        ConfigError: There is no such folder of configs.
    """
    root = resources.folder("configs").resolve()
    there = known()
    wanted = [root / PIPELINE]
    for name in configs:
        if name not in there:
            raise ConfigError(f"--configs {name}: there are: {', '.join(there)}")
        wanted += sorted((root / name).rglob("*.yaml"))
    with_bases = sorted({file for path in wanted for file in yamlfile.files(path)})
    found = {Path("README.md"): README.encode(), SITE: _site()}
    found |= {Path("configs") / path.relative_to(root): path.read_bytes() for path in with_bases}
    found |= {Path(resources.LAUNCH.where) / path.name: path.read_bytes() for path in resources.LAUNCH.files().values()}
    return found


def _site() -> bytes:
    """The default site profile, with this Python as the one that nodes use."""
    text = resources.PROFILES.find(resources.PROFILES.folder / "default.yaml").read_text(encoding="utf-8")
    if not set('"\\') & set(sys.executable):  # such a path cannot be written in a profile
        text += f"python: {json.dumps(sys.executable, ensure_ascii=False)}  # this environment: nodes need to see it\n"
    return text.encode()


def lay_out(folder: Path, configs: Iterable[str] = CONFIGS) -> list[Path]:
    """Write a project: either all files or none. Existing files are never changed.

    Args:
        folder: A new folder, or one without any of these files.
        configs: Folders of configs, from `known`.

    Returns:
        Paths of the files in the project.

    Raises:
        ConfigError: One of the files already exists, or there is no such folder of configs.
    """
    found = files(configs)
    if taken := [place for path in found if (place := _taken(folder, path)) is not None]:
        names = [str(place) for place in dict.fromkeys(taken)]
        listed = names[0] if len(names) == 1 else f"{len(names)} of the files"
        below = "" if len(names) == 1 else ":\n  " + "\n  ".join(names)
        raise ConfigError(f"{folder}: already has {listed}; nothing was written. Choose a new folder{below}")
    written: list[Path] = []
    try:
        for path, content in found.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            with (folder / path).open("xb") as file:
                written.append(folder / path)
                file.write(content)
    except BaseException:
        for file_path in written:
            file_path.unlink()
        raise
    return list(found)


def _taken(folder: Path, path: Path) -> Path | None:
    """What blocks a file of the project: an existing file, or a file in place of its folder; None if nothing does."""
    for up in (Path(), *reversed(path.parents[:-1])):
        if (folder / up).exists() and not (folder / up).is_dir():
            return up
    return path if (folder / path).exists() or (folder / path).is_symlink() else None
