"""What a form of an export works with, and tells."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ccr_dist.errors import ConfigError
from ccr_dist.export.held_out import Measured, Sample
from ccr_dist.export.paths import TextPath, text_paths
from ccr_dist.export.pictures import PicturePath
from ccr_dist.retriever.retriever import Retriever


@dataclass
class Job:
    """What a form works with; its function `write(folder, job)` fills the folder and checks it.

    Attributes:
        retriever: the model, on the CPU and in float32, as the forms are.
        languages: that are exported.
        sample: held-out queries and pictures.
        picture: the way of pictures, where they are exported.
        measured: what the checks found.
        facts: of the form, for the record and the card: {"import": ...} and the like.
        usage: lines of Python for the card.
        notes: sentences for the card: what is left out, and why.
    """

    retriever: Retriever
    languages: tuple[str, ...]
    sample: Sample
    picture: PicturePath | None = None
    measured: Measured = field(default_factory=Measured)
    facts: dict[str, Any] = field(default_factory=dict)
    usage: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def paths(self) -> list[TextPath]:
        return text_paths(self.retriever.method, self.languages)

    def the_path(self, form: str) -> TextPath:
        """The one way of all languages, for forms that hold one. ConfigError where there are several."""
        paths = self.paths()
        if len(paths) > 1:
            ways = "; ".join(", ".join(path.languages) for path in paths)
            raise ConfigError(
                f"--to {form}: this form holds one text encoder, and the model has one for each of: {ways}. Choose with"
                " --lang, and export the others to folders of their own"
            )
        return paths[0]

    def picture_of(self, form: str) -> None:
        """Raises ConfigError with the reason why there are no pictures, for forms that need them."""
        raise ConfigError(f"--to {form}: this form holds both sides. {' '.join(self.notes)}")

    def texts(self, lang: str) -> list[str]:
        return self.sample.texts[lang]

    def rows(self, lang: str) -> np.ndarray:
        """What the model makes of the queries, unit rows."""
        return unit(self.retriever.encode_text(self.texts(lang), lang))

    def picture_rows(self) -> np.ndarray:
        return unit(self.retriever.encode_images(list(self.sample.pictures)))


def unit(rows: np.ndarray) -> np.ndarray:
    """Rows of unit length."""
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-30)
