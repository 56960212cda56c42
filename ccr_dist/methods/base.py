"""What a method is: the contract between methods and everything that trains or evaluates them.

A method knows no rank, no world size and no wrapper. Whatever concerns the global batch it asks of
`losses.context.Context`. How methods are found by name is in `registry.py`.
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from ccr_dist.config import MethodOptions
from ccr_dist.data.stream.loader import Batch
from ccr_dist.evaluate.retrieval import PLAIN, Fusion, cosine
from ccr_dist.losses.context import Context
from ccr_dist.methods.features import encode_english, encode_visual
from ccr_dist.models.backbones.backbone import Backbone


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
        self.options = options
        self.backbone = backbone
        self.languages = tuple(languages)
        self.net = nn.ModuleDict()
        self.aux = nn.ModuleDict()
        self.build(texts, state)

    def build(self, texts: Iterable[str] | None, state: Mapping[str, Any] | None) -> None:  # noqa: B027 (a zero-shot method adds nothing)
        """Fill `net` and `aux`; called last by `__init__`, with its `texts` and `state`."""

    # What it is.

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

    def encode_visual(
        self, visual: Tensor, mask: Tensor | None = None, description: Sequence[str] = ()
    ) -> dict[str, Tensor]:
        """Items to {"global": (n, D), …}, n ≥ 0: `visual`, `visual_mask` and `description` of a batch."""
        return {"global": encode_visual(self.backbone, visual)}

    def encode_text(self, texts: Sequence[str], lang: str, companion: Sequence[str] = ()) -> dict[str, Tensor]:
        """Texts of one language to {"global": (n, D), …}, n ≥ 0. English goes to the backbone untouched, so nothing is
        forgotten.

        companion: the aligned texts of the column that `companions` names for the language, else none.
        """
        return {"global": encode_english(self.backbone, texts)}

    @property
    def truncated(self) -> int:
        """Texts that tokenisers have cut in this process so far, being longer than the positions allow."""
        return self.backbone.truncated

    def image_transform(self) -> Callable[..., Tensor]:
        """How training sees pictures: as evaluation does, unless a method augments them (`leccr/augment.py`)."""
        return self.backbone.image_transform()

    # Scoring.

    # of what encode_text and encode_visual return, the parts that scores are made from
    text_parts: tuple[str, ...] = ("global",)
    visual_parts: tuple[str, ...] = ("global",)

    def scores(self, text: Mapping[str, Tensor], visual: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Parts of the score of every text with every item, each (Nt, Nv), each pair on its own.

        Args: the `text_parts` of Nt texts and the `visual_parts` of Nv items; tensors (N, …).
        """
        return cosine(text, visual)

    def fusions(self) -> list[Fusion]:
        """How the parts become one score. The first is used in training; validation chooses among them for the test."""
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
