"""Files that come with ccr-dist: recipes, launch and site profiles, SLURM scripts, configs. The one place that knows
where they lie.

In a checkout and in an editable install they are the folders `shards/`, `slurm/`, `launch/` and `configs/` beside the
package; a wheel carries them in `ccr_dist/shipped/` (see `pyproject.toml`).

How a user names one, everywhere alike: what ends in .yaml, .yml or .json is the path of a file, and so is what begins
with `/`, `./` or `../`. Anything else is the name of a file that comes with ccr-dist. Where another file of that name
lies in the working folder, too, neither is taken: that is an error, which says how to write either.
"""

from __future__ import annotations

import difflib
import importlib.resources
import re
from dataclasses import dataclass
from pathlib import Path

from ccr_dist.errors import ConfigError

SUFFIXES = (".yaml", ".yml", ".json")


def package() -> Path:
    """The folder of the package. ConfigError where it lies in an archive: SLURM and launchers need files."""
    place = importlib.resources.files("ccr_dist")
    if not isinstance(place, Path):
        raise ConfigError(f"ccr-dist runs from {place}, but needs to be installed as files: install it with pip")
    return place


def folder(name: str) -> Path:
    """One of the folders that come with ccr-dist, such as `slurm` or `launch/accelerate`. ConfigError where the
    installation lacks it.
    """
    inside = package()
    above = inside.parent
    # A wheel's files win: beside an installed package lie those of all others, and one may be called `launch`.
    root = above if not (inside / "shipped").is_dir() and (above / "pyproject.toml").is_file() else inside / "shipped"
    if not (root / name).is_dir():
        raise ConfigError(
            f"{root / name}: this folder should have come with ccr-dist: the installation is damaged; install it again"
        )
    return root / name


def is_path(given: str | Path) -> bool:
    """Whether a user's word for a file is a path, not a name."""
    return str(given).endswith(SUFFIXES) or str(given).startswith(("/", "./", "../"))


def hint(missing: str | Path) -> str:
    """What to say of a path that is not there, behind the words `no such file`: where ccr-dist ships a file of that
    path.
    """
    parts = Path(missing).parts
    if len(parts) < 2 or parts[0] not in ("configs", "launch", "shards", "slurm"):
        return ""
    try:
        shipped = folder(parts[0]).joinpath(*parts[1:])
    except ConfigError:
        return ""
    return (
        f" here; ccr-dist comes with one, {shipped}; `ccr-dist init DIR` makes a folder with copies to edit"
        if shipped.is_file()
        else ""
    )


def shown(path: str) -> str:
    """A shipped file as a message names it: by the path that begins at the working folder where it lies there, else by
    its own.
    """
    return path if Path(path).exists() else str(folder(str(Path(path).parent)) / Path(path).name)


@dataclass(frozen=True)
class Kind:
    """Files of one folder that a user may name without path and suffix.

    Args:
        what: what messages call one of them.
        where: the folder, as `folder` takes it.
        suffix: of all files of this kind.
        inside: whether the folder is one of the package, in a checkout, too.
    """

    what: str
    where: str
    suffix: str = ".yaml"
    inside: bool = False

    @property
    def folder(self) -> Path:
        return package() / self.where if self.inside else folder(self.where)

    def files(self) -> dict[str, Path]:
        """All of them, by name, in order."""
        return {path.stem: path for path in sorted(self.folder.glob(f"*{self.suffix}"))}

    def find(self, given: str | Path) -> Path:
        """The file that a user means by a path or a name.

        Args:
            given: the user's word.

        Returns:
            Its path; a path is returned as it is, whether there is such a file or not.

        Raises:
            ConfigError: no file of that name comes with ccr-dist, or the working folder has another one.
        """
        if is_path(given):
            return Path(given)
        name, files = str(given), self.files()
        here = self._here(name)
        if name not in files:
            near = difflib.get_close_matches(name, files, 1)
            if here:
                advice = f"for the file here write {_as_path(here[0])}"
            elif near:
                advice = f"did you mean {near[0]!r}?"
            else:
                advice = f"there are: {', '.join(files)}; or give the path of a {self.suffix} file"
            raise ConfigError(f"{self.what} {name!r}: none of that name comes with ccr-dist; {advice}")
        for other in here:
            if other.read_bytes() != files[name].read_bytes():
                raise ConfigError(
                    f"{self.what} {name!r}: one comes with ccr-dist, and {other} in this folder is another: write"
                    f" {_as_path(other)} for the one here, {files[name]} for the other"
                )
        return files[name]

    def _here(self, name: str) -> list[Path]:
        """Files in the working folder that a user may mean by the name."""
        places = (Path(name), Path(name + self.suffix), Path(self.where) / (name + self.suffix))
        return [place for place in places if place.is_file() and not _is_always_a_path(place)]


def _is_always_a_path(file: Path) -> bool:
    """Whether a file is a pipeline, a study or a run config, by its top-level keys. These have no short names, so a
    pipeline may be called like a recipe.
    """
    text = file.read_text(encoding="utf-8", errors="replace")
    return re.search(r"^(?:steps|rows|stages|method)\s*:", text, re.MULTILINE) is not None


def _as_path(file: Path) -> str:
    return str(file) if is_path(file) else f"./{file}"


RECIPES = Kind("recipe", "shards")
PROMPTS = Kind("prompt", "generate/prompts", inside=True)
PROFILES = Kind("site profile", "slurm/profiles")
LAUNCH = Kind("launch profile", "launch/accelerate")
DEEPSPEED = Kind("DeepSpeed config", "launch/deepspeed", ".json")
