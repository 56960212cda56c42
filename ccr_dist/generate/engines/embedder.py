"""What an embedding engine is: texts in, one vector each out; and finding one by name. What to embed of which row is
`generate/jobs/embed.py`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, NamedTuple

import numpy as np

from ccr_dist.generate.engines import base


class Embedded(NamedTuple):
    """Vectors of some texts.

    Attributes:
        vectors: (n, F) float32; a row of NaN where there is an error.
        cut: Which texts lost their ends.
        errors: Why a text has no vector, by its number.
    """

    vectors: np.ndarray
    cut: list[bool]
    errors: dict[int, str]


class Embedder(ABC):
    """A model that makes a vector of a text; making it loads nothing heavy.

    `name`: of the model, for column names. `packages`, `tools`, `local`: as of a `Translator`.
    """

    Options: ClassVar[type[base.EngineOptions]] = base.EngineOptions
    packages: ClassVar[tuple[str, ...]] = ()
    tools: ClassVar[tuple[str, ...]] = ()
    local: ClassVar[bool] = True
    name: str

    @abstractmethod
    def __init__(self, options: Any) -> None: ...

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """What determines the vectors: engine, model and revision or digest, prompt, pooling, precision. JSON; no
        paths.
        """

    def versions(self) -> dict[str, str]:
        """Of libraries that are no part of the identity, for the provenance."""
        return {}

    @abstractmethod
    def load(self) -> None:
        """Loads the model; called once before the first `embed`. EngineError when it cannot be loaded."""

    @property
    @abstractmethod
    def width(self) -> int:
        """F, of a loaded model."""

    @abstractmethod
    def embed(self, texts: list[str]) -> Embedded:
        """n ≥ 1 texts. A vector does not depend on its neighbours but for rounding. EngineError when the engine is
        gone.
        """

    def close(self) -> None:  # noqa: B027 (not all have something to end)
        """Ends what `load` started."""


embedders: base.Registry[Embedder] = base.Registry("embedding engine")


def make_embedder(name: str, options: dict[str, Any]) -> Embedder:
    """The engine of this name. ConfigError for an unknown engine or option, naming the valid ones."""
    cls = embedders.get(name)
    return cls(base.check_options(name, cls.Options, options))
