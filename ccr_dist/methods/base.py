"""What a method is, and how it is found by name. One method lives in one file or folder here; `docs/extending.md` shows
how to add one.

Nothing here and nothing at the top of a method's file imports torch: reading a config needs the names, options and
stages of all methods, and must be quick. A method knows no rank, no world size and no wrapper; whatever concerns the
global batch it asks of `train.context.Context`.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from abc import ABC
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from ccr_dist.config import DataConfig, MethodOptions
from ccr_dist.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ccr_dist.data.stream.loader import Batch
    from ccr_dist.evaluate.retrieval import Fusion
    from ccr_dist.losses.context import Context
    from ccr_dist.models.backbones import Backbone

ENGLISH = "en"
INPUTS = frozenset(
    {"visual", "tokens", "source_text", "source_feature", "target_text", "description", "back_text", "back_feature"}
)


@dataclass(frozen=True)
class Stage:
    """One training stage of a method, apart from how long and how fast (that is `config.StageConfig`).

    needs: what of a batch the stage reads, out of `INPUTS`. "visual" is a picture or one vector a row; "tokens" is a
        picture or any number of vectors a row (tokens of a picture, frames of a video). "source_feature" means the
        English feature of the caption: the cached column where the data names one, else made from `source_text` in
        every step (`methods.features.english`); "back_feature" likewise that of the back-translation of the target
        caption.
    trains: what is trained and towards what, in a few words, for people.
    frozen: "visual" or "tokens", where the stage reads pictures as features of the frozen backbone alone, always the
    same for the same
        picture: cached ones may then stand in.
    """

    needs: frozenset[str]
    trains: str
    frozen: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        assert self.needs <= INPUTS, f"unknown batch fields {set(self.needs - INPUTS)}"
        assert self.frozen <= self.needs & {"visual", "tokens"}, f"not read, or no pictures: {set(self.frozen)}"
        assert not {"visual", "tokens"} <= self.needs, "a stage reads one vector a row or several, not both"


class Method(ABC):
    """Base of all methods. A subclass overrides what it needs; as it stands this class is a zero-shot retriever.

    Attributes:
        net: every module that the method adds to the backbone, trained or not. In the checkpoint, and in the
        distributed wrapper. aux: auxiliary networks by name, each with an optimiser of its own, stepped before the main
        one. In the checkpoint, replicated. gradient_checkpointing: set by the training loop.

    Random starts are drawn from torch's global generator, which the caller seeds.
    """

    name: ClassVar[str]
    Options: ClassVar[type[MethodOptions]] = MethodOptions
    gradient_checkpointing: bool = False
    recomputes: bool = True  # it has parts that gradient checkpointing computes again
    # networks of `aux` that the main optimiser steps, too, by the gradients `losses` leaves in them
    entangled: tuple[str, ...] = ()
    shared_outputs: tuple[str, ...] = ("scale",)  # of `outputs`, what is not one a row
    # `outputs` writes into parameters that nobody trains (running means), so they must lie whole
    keeps_statistics: bool = False
    # rows of a batch meet inside `outputs`, not in `losses` alone, so that it cannot be cut into parts
    rows_interact: bool = False

    def __init__(
        self,
        options: Any,
        backbone: Backbone,
        languages: Sequence[str],
        *,
        texts: Iterable[str] | None = None,
        state: Mapping[str, Any] | None = None,
    ) -> None:
        """
        Args:
            options: an instance of `Options`.
            backbone: frozen.
            languages: target languages in training.
            texts: all target-language training texts, for methods that size themselves by their vocabulary.
            state: `state()` of a method built before; `texts` is not needed then. It says nothing of weights: whoever
            builds from it makes
                the same start as without it.

        Raises:
            ConfigError: options, backbone and languages do not go together.
        """
        from torch import nn

        self.options = options
        self.backbone = backbone
        self.languages = tuple(languages)
        self.net = nn.ModuleDict()
        self.aux = nn.ModuleDict()
        self.build(texts, state)

    def build(self, texts: Iterable[str] | None, state: Mapping[str, Any] | None) -> None:  # noqa: B027 (a zero-shot method adds nothing)
        """Fill `net` and `aux`; called last by `__init__`, with its `texts` and `state`."""

    # What it is.

    @classmethod
    def stages(cls, options: Any) -> dict[str, Stage]:
        """Stages in their order; a run config gives steps, batch and rate under the same names. Empty: nothing is
        trained.
        """
        return {}

    def state(self) -> dict[str, Any]:
        """JSON: what `build` needs, besides the weights, to build the same method again."""
        return {}

    def trainable(self, stage: str) -> list[str]:
        """Prefixes, below "net." and "backbone.", of the names of the parameters trained in the stage. Everything else
        is frozen.
        """
        return ["net."]

    def limits(self, stage: str) -> dict[str, tuple[float, float]]:
        """Trained parameters, by name, that are put back between these values before the stage's first step and after
        each of its steps. A bound inside `outputs` would have no gradient beyond it, so that a parameter that lies
        there never learns.
        """
        return {}

    # Encoding.

    @classmethod
    def gallery(cls, options: Any) -> frozenset[str]:
        """What of an item `encode_visual` reads: "visual" or "tokens" (as for `Stage.needs`), and "description" if it
        does.
        """
        return frozenset({"visual"})

    def encode_visual(
        self, visual: Tensor, mask: Tensor | None = None, description: Sequence[str] = ()
    ) -> dict[str, Tensor]:
        """Items to {"global": (n, D), …}, n ≥ 0: `visual`, `visual_mask` and `description` of a batch."""
        from ccr_dist.methods.features import encode_visual

        return {"global": encode_visual(self.backbone, visual)}

    def encode_text(self, texts: Sequence[str], lang: str, companion: Sequence[str] = ()) -> dict[str, Tensor]:
        """Texts of one language to {"global": (n, D), …}, n ≥ 0. English goes to the backbone untouched, so nothing is
        forgotten.

        companion: the aligned texts of the column that `companions` names for the language, else none.
        """
        from ccr_dist.methods.features import encode_english

        return {"global": encode_english(self.backbone, texts)}

    @classmethod
    def query_columns(cls, data: DataConfig) -> dict[str, str]:
        """Language -> column that its queries are read from. Raises ConfigError when one that the method needs is not
        named.
        """
        return dict(data.queries)

    @classmethod
    def companions(cls, data: DataConfig, options: Any) -> dict[str, str]:
        """Language -> a column of texts aligned with its queries that `encode_text` gets, too. ConfigError like
        `query_columns`.
        """
        return {}

    @property
    def truncated(self) -> int:
        """Texts that tokenisers have cut in this process so far, being longer than the positions allow."""
        return self.backbone.truncated

    def image_transform(self) -> Callable[..., Tensor]:
        """How training sees pictures: as evaluation does, unless a method augments them (`models/augment.py`)."""
        return self.backbone.image_transform()

    # Scoring.

    # of what encode_text and encode_visual return, the parts that scores are made from
    text_parts: tuple[str, ...] = ("global",)
    visual_parts: tuple[str, ...] = ("global",)

    def scores(self, text: Mapping[str, Tensor], visual: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Parts of the score of every text with every item, each (Nt, Nv), each pair on its own.

        Args: the `text_parts` of Nt texts and the `visual_parts` of Nv items; tensors (N, …).
        """
        from ccr_dist.evaluate.retrieval import cosine

        return cosine(text, visual)

    def fusions(self) -> list[Fusion]:
        """How the parts become one score. The first is used in training; validation chooses among them for the test."""
        from ccr_dist.evaluate.retrieval import PLAIN

        return [PLAIN]

    # Training.

    def outputs(self, stage: str, batch: Batch) -> dict[str, Tensor]:
        """The one training forward, the only part inside the distributed wrapper.

        Everything that a loss needs and that depends on a trained parameter is in here, a temperature too: a wrapper
        that reduces gradients sees no other use of a parameter. A rank may hold no rows; its outputs are then empty but
        still hang on the parameters (`methods.features`).
        """
        raise RuntimeError(f"method {self.name} has no training stage {stage!r}")

    def losses(self, stage: str, batch: Batch, outputs: dict[str, Tensor], ctx: Context) -> dict[str, Tensor]:
        """Loss terms by name, each weighted, each this rank's share: summed over the ranks it is the term of the global
        batch.
        """
        raise RuntimeError(f"method {self.name} has no training stage {stage!r}")

    def auxiliary_losses(self, stage: str, batch: Batch, outputs: dict[str, Tensor], ctx: Context) -> dict[str, Tensor]:
        """Loss share of each network in `aux`, by its name. `outputs` come detached."""
        return {}

    def auxiliary_lr(self, name: str) -> float:
        """Learning rate of the Adam optimiser of `aux[name]`."""
        raise RuntimeError(f"method {self.name} has no auxiliary network {name!r}")

    def named_parameters(self) -> dict[str, nn.Parameter]:
        """All parameters by the names that `trainable`, checkpoints and reports use."""
        parts = {"backbone": self.backbone, "net": self.net}
        return {
            f"{part}.{name}": parameter
            for part, module in parts.items()
            for name, parameter in module.named_parameters()
        }


Found = TypeVar("Found", bound=type[Method])
_registry: dict[str, type[Method]] = {}


def register(name: str) -> Callable[[Found], Found]:
    """Class decorator: makes a method known under `name`."""

    def add(method: Found) -> Found:
        known = _registry.get(name)
        assert known is None or known.__module__ == method.__module__, f"method {name!r} is registered by two files"
        method.name = name
        _registry[name] = method
        return method

    return add


def names() -> list[str]:
    """All methods, sorted. Imports every file of this folder once."""
    import ccr_dist.methods as folder

    for module in pkgutil.iter_modules(folder.__path__):
        importlib.import_module(f"{folder.__name__}.{module.name}")
    return sorted(_registry)


def get(name: str, *, place: str = "method.name") -> type[Method]:
    """The method called `name`. ConfigError, beginning with `place`, that lists the known ones and the nearest."""
    known = names()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean '{near[0]}'? " if near else ""
        raise ConfigError(f"{place}: unknown method '{name}'; {hint}known methods: {', '.join(known)}")
    return _registry[name]
