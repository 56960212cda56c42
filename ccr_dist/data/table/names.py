"""The names of columns: which are allowed, and which command usually makes a column with such a name."""

from __future__ import annotations

import re
from typing import TypeVar

from ccr_dist.errors import ConfigError

JOBS = "jobs"  # in a column's folder in a store: who works on which shard, and what is made of it

Names = TypeVar("Names", str, list[str], None)
_COLUMN = re.compile(r"^(image|video|(caption|description|feature|label)\.[A-Za-z0-9][A-Za-z0-9._-]*)$")


def is_column_name(name: str) -> bool:
    """Whether a column may have this name."""
    return _COLUMN.fullmatch(name) is not None


def check_column_name(name: str) -> str:
    """Returns the name.

    Raises:
        ConfigError: It is not `image`, `video`, `caption.<lang>[.<engine>]`, `description.*`, `feature.*` or `label.*`.
    """
    if not is_column_name(name):
        raise ConfigError(
            f"column name {name!r}: expected image, video, caption.<lang>, caption.<lang>.<engine>,"
            " description.<source>, feature.<name> or label.<what>, of letters, digits and . _ -"
        )
    return name


def column_names(given: Names) -> Names:
    """For options of commands that name columns: what was given, once it is known that columns may have such names.

    Args:
        given: One name, several, or none.

    Raises:
        ConfigError: As for `check_column_name`.
    """
    names: list[str] = [given] if isinstance(given, str) else given or []
    for name in names:
        check_column_name(name)
    return given


def maker(name: str, dataset: str = "DATASET") -> str:
    """The command that usually makes a column with this name, with the options that the name implies.

    CAPITALS stand for what the name does not say.
    """
    kind, _, rest = name.partition(".")
    language, _, engine = rest.partition(".")
    if kind == "caption" and engine:
        if back := re.match(r"back-([a-z]{2,3}(?:[-_][A-Z][A-Za-z]+)?)-", engine):
            return f"ccr-dist translate {dataset} --engine ENGINE --to {back[1]} --back"
        source = " --from caption.LANG" if language == "en" else ""
        return f"ccr-dist translate {dataset} --engine ENGINE --to {language}{source} --column {name}"
    if kind == "feature":
        made_from = re.search(r"\.(image|video|caption\..+?)(\.tokens)?(-\d+)?$", name)
        source = made_from[1] if made_from else "COLUMN"
        source += " --tokens" if made_from and made_from[2] else ""
        return f"ccr-dist featurise {dataset} --config CONFIG.yaml --from {source} --column {name}"
    if kind == "description":
        return f"ccr-dist describe {dataset} --engine vllm --model MODEL --column {name}"
    return "ccr-dist shards build"
