"""YAML that every reader reads alike, and names that Kubernetes accepts.

Readers of YAML differ in which plain words are no text (`y`, `on`, `1e3`, `0o7`). So all text is quoted but words that
none of them takes for anything else.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Any

import yaml

_PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9._/-]*", re.ASCII)
_TAKEN = frozenset({"y", "n", "yes", "no", "on", "off", "true", "false", "null"})
MOST = 44  # of a name, since a JobSet adds `-nodes-0-`, the number of a pod, and a suffix, to 63 at most


class _Dumper(yaml.SafeDumper):
    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)  # lists stand below their keys

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    plain = _PLAIN.fullmatch(value) and value.lower() not in _TAKEN
    style = None if plain else "|" if "\n" in value else '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


_Dumper.add_representer(str, _text)


def yaml_text(values: Mapping[str, Any]) -> str:
    """A mapping as YAML, in its own order."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=10**9)


def name_of(pipeline: str, step: str) -> str:
    """A name for a step's objects: letters, digits and dashes, not too long.

    A name that has to be changed for that gets a digest of what it was, so that two never become one.

    Args:
        pipeline: Name of the pipeline.
        step: Name of the step.
    """
    whole = f"{pipeline}-{step}"
    if re.fullmatch(rf"[a-z][a-z0-9-]{{0,{MOST - 2}}}[a-z0-9]", whole, re.ASCII):
        return whole
    plain = re.sub(r"[^a-z0-9-]", "-", whole.lower())
    plain = plain if plain[0].isalpha() else f"p-{plain}"
    return f"{plain[: MOST - 7].rstrip('-')}-{hashlib.sha256(whole.encode()).hexdigest()[:6]}"
