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
DIGITS = 8  # of a digest in a name
_RESERVED = re.compile(rf"-([0-9a-f]{{{DIGITS}}}|nodes-[0-9]+)$")  # ends of names with a digest, and of JobSets' jobs
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

    Two steps never have the same name, nor that of what a JobSet makes (`NAME-nodes-0`): where the two names joined by
    a dash could be those of another step, or have to be changed, the name ends with a digest of both. Joined, `a` and
    `b-c` could be `a-b` and `c`; so only a pipeline without a dash in its name does without.

    Args:
        pipeline: Name of the pipeline.
        step: Name of the step.
    """
    whole = f"{pipeline}-{step}"
    plain = re.fullmatch(r"[a-z][a-z0-9]*-[a-z0-9-]*[a-z0-9]", whole, re.ASCII) and "-" not in pipeline
    if plain and len(whole) <= MOST and not _RESERVED.search(whole):
        return whole
    digest = hashlib.sha256(f"{pipeline}/{step}".encode()).hexdigest()[:DIGITS]
    changed = re.sub(r"[^a-z0-9-]", "-", whole.lower())
    changed = changed if changed[0].isalpha() else f"p-{changed}"
    return f"{changed[: MOST - DIGITS - 1].rstrip('-')}-{digest}"
