"""A YAML document after its bases and overrides: merged values, and where each was written."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ccr_dist.yamldoc.nodes import KeyPath


@dataclass
class Document:
    """Merged values, and where each of them was written.

    Attributes:
        name: Name of the document, for messages.
        data: The values.
        places: The place (`file:line`, or an override) that set each key path last.
        texts: What was written, for values that could also be meant as text.
        overrides: Place of each override, by the key path that it sets.
        outside: Files outside the document's own folder; errors name their lines, but quote nothing from them.
    """

    name: str
    data: dict[str, Any] = field(default_factory=dict)
    places: dict[KeyPath, str] = field(default_factory=dict)
    texts: dict[KeyPath, str] = field(default_factory=dict)
    overrides: dict[KeyPath, str] = field(default_factory=dict)
    outside: set[str] = field(default_factory=set)

    def place(self, path: KeyPath) -> str:
        """The place of the value at `path`, or of its nearest parent."""
        for end in range(len(path), 0, -1):
            if path[:end] in self.places:
                return self.places[path[:end]]
        return self.name

    def replaced(self, data: dict[str, Any]) -> Document:
        """A document with the same places and other values."""
        return Document(self.name, data, self.places, self.texts, self.overrides, self.outside)

    def forget(self, path: KeyPath) -> None:
        """Drop places and texts at `path` and below, since the value is replaced."""
        for known in (self.places, self.texts):
            for old in [key for key in known if key[: len(path)] == path]:
                del known[old]
