"""Finds the files that come with ccr-dist: recipes, launch and site profiles, SLURM scripts, configs.

In a checkout and in an editable install they are the folders `shards/`, `slurm/`, `launch/` and `configs/` beside the
package; a wheel carries them in `ccr_dist/shipped/` (see `pyproject.toml`).

The same rule applies to every option that names such a file: a word that ends in .yaml, .yml or .json, or begins with
`/`, `./` or `../`, is a path; any other word is the name of a shipped file. If the working folder has a different file
of that name, that is an error, which says how to write either.
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
    """The folder of the package. Raises ConfigError if it is in an archive, since SLURM and launchers need files."""
    place = importlib.resources.files("ccr_dist")
    if not isinstance(place, Path):
        raise ConfigError(f"ccr-dist runs from {place}, but needs to be installed as files: install it with pip")
    return place


def folder(name: str) -> Path:
    """One of the folders that come with ccr-dist, such as `slurm` or `launch/accelerate`.

    Raises:
        ConfigError: The installation lacks it.
    """
    inside = package()
    above = inside.parent
    # A wheel's files win: other packages are installed beside this one, and one may be called `launch`.
    root = above if not (inside / "shipped").is_dir() and (above / "pyproject.toml").is_file() else inside / "shipped"
    if not (root / name).is_dir():
        raise ConfigError(
            f"{root / name}: this folder should have come with ccr-dist: the installation is damaged; install it again"
        )
    return root / name


def is_path(given: str | Path) -> bool:
    """Whether a user's word for a file is a path rather than a name."""
    return str(given).endswith(SUFFIXES) or str(given).startswith(("/", "./", "../"))


def hint(missing: str | Path) -> str:
    """Text to append to `no such file`: where ccr-dist ships a file of this path; "" if it ships none."""
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
    """A shipped file for messages: `path` as it is if that exists from the working folder, otherwise its full path."""
    return path if Path(path).exists() else str(folder(str(Path(path).parent)) / Path(path).name)


@dataclass(frozen=True)
class Kind:
    """Shipped files of one folder, which a user may name without path and suffix.

    Attributes:
        what: What messages call one of them.
        where: The folder, as for `folder`.
        suffix: Suffix of these files.
        inside: Whether the folder is inside the package, even in a checkout.
    """

    what: str
    where: str
    suffix: str = ".yaml"
    inside: bool = False

    @property
    def folder(self) -> Path:
        """The folder of these files."""
        return package() / self.where if self.inside else folder(self.where)

    def files(self) -> dict[str, Path]:
        """All files by name, sorted."""
        return {path.stem: path for path in sorted(self.folder.glob(f"*{self.suffix}"))}

    def find(self, given: str | Path) -> Path:
        """Find the file that a user names.

        Args:
            given: A path or the name of a shipped file.

        Returns:
            Its path. A path is returned unchanged, whether the file exists or not.

        Raises:
            ConfigError: No shipped file has this name, or the working folder has another file of this name.
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
        """Files in the working folder that the name could mean."""
        places = (Path(name), Path(name + self.suffix), Path(self.where) / (name + self.suffix))
        return [place for place in places if place.is_file() and not _is_always_a_path(place)]


def _is_always_a_path(file: Path) -> bool:
    """Whether a file is a pipeline, a study or a run config, by its top-level keys.

    These are always named by path, so that a pipeline may have the name of a recipe.
    """
    text = file.read_text(encoding="utf-8", errors="replace")
    return re.search(r"^(?:steps|rows|stages|method)\s*:", text, re.MULTILINE) is not None


def _as_path(file: Path) -> str:
    return str(file) if is_path(file) else f"./{file}"


RECIPES = Kind("recipe", "shards")
PROMPTS = Kind("prompt", "generate/prompts", inside=True)
RATES = Kind("failure rates", "simulate/rates", inside=True)
PROFILES = Kind("site profile", "slurm/profiles")
LAUNCH = Kind("launch profile", "launch/accelerate")
DEEPSPEED = Kind("DeepSpeed config", "launch/deepspeed", ".json")
