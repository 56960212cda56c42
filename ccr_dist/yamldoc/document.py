"""A YAML document after its bases and overrides: merged values, and where each was written."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ccr_dist.yamldoc.nodes import KeyPath


@dataclass
class Document:
    """Merged values and, for each key path, the place (`file:line`, an override) that had the last word on it.

    texts: what was written where a value could be meant as text. overrides: their places, by the path that each sets.
    outside: files above the document's own folder; errors tell their lines, and quote nothing of what they hold.
    """

    name: str
    data: dict[str, Any] = field(default_factory=dict)
    places: dict[KeyPath, str] = field(default_factory=dict)
    texts: dict[KeyPath, str] = field(default_factory=dict)
    overrides: dict[KeyPath, str] = field(default_factory=dict)
    outside: set[str] = field(default_factory=set)

    def place(self, path: KeyPath) -> str:
        """Where the value at `path`, or its nearest parent, was written."""
        for end in range(len(path), 0, -1):
            if path[:end] in self.places:
                return self.places[path[:end]]
        return self.name

    def replaced(self, data: dict[str, Any]) -> Document:
        """The same places with other values."""
        return Document(self.name, data, self.places, self.texts, self.overrides, self.outside)

    def forget(self, path: KeyPath) -> None:
        """Places and texts at `path` and below: something else stands there now."""
        for known in (self.places, self.texts):
            for old in [key for key in known if key[: len(path)] == path]:
                del known[old]
