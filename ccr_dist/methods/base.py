"""What a method is: the contract between methods and everything that trains or evaluates them.

A method knows no rank, no world size and no wrapper. Whatever concerns the global batch it asks of
`losses.context.Context`. How methods are found by name is in `registry.py`.
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from ccr_dist.config import MethodOptions
from ccr_dist.data.stream.loader import Batch
from ccr_dist.evaluate.retrieval import PLAIN, Fusion, cosine, plain_cosine
from ccr_dist.losses.context import Context
from ccr_dist.methods.features import encode_english, encode_visual
from ccr_dist.models.backbones.backbone import Backbone


class Method(ABC):
    """Base of all methods: a zero-shot retriever. A subclass overrides what it does differently.

    Random starts are drawn from torch's global generator, which the caller seeds.

    Attributes:
        name: under which the method is registered.
        Options: the class of its options.
        net: every module that the method adds to the backbone, trained or not; in the checkpoint and in the distributed
            wrapper.
        aux: auxiliary networks by name, each with an optimiser of its own, which is stepped before the main one; in
            the checkpoint, replicated on every rank.
        gradient_checkpointing: set by the training loop.
        recomputes: the method has parts that gradient checkpointing computes again.
        entangled: networks of `aux` that the main optimiser updates as well, by the gradients that `losses` leaves.
        shared_outputs: names in `outputs` that do not hold one value a row.
        borrows_tensors: modules outside of backbone and net compute with tensors of these, which ZeRO-3 then has only
            in parts.
        keeps_statistics: `outputs` writes into parameters that are not trained (running means), so these parameters
            must not be sharded.
        rows_interact: `outputs` compares rows of a batch, so a batch cannot be divided before it.
        text_parts: names in the result of `encode_text` that scores are made from.
        visual_parts: names in the result of `encode_visual` that scores are made from.
    """

    name: ClassVar[str]
    Options: ClassVar[type[MethodOptions]] = MethodOptions
    gradient_checkpointing: bool = False
    recomputes: bool = True
    entangled: tuple[str, ...] = ()
    shared_outputs: tuple[str, ...] = ("scale",)
    keeps_statistics: bool = False
    borrows_tensors: bool = False
    rows_interact: bool = False
    text_parts: tuple[str, ...] = ("global",)
    visual_parts: tuple[str, ...] = ("global",)

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
            texts: all training texts in target languages, for methods whose size depends on their vocabulary.
            state: `state()` of a method that was built before; `texts` is not needed then. It does not hold weights:
                the start is the same with and without it.

        Raises:
            ConfigError: options, backbone and languages do not fit together.
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
        """Prefixes of the names of the parameters that a stage trains, below "net." and "backbone.".

        All other parameters are frozen.
        """
        return ["net."]

    def limits(self, stage: str) -> dict[str, tuple[float, float]]:
        """Trained parameters by name, with the least and the largest value that each may have.

        They are clamped before the first step of the stage and after each of its steps. A limit inside `outputs` would
        have no gradient beyond it, so a parameter that lies there would never learn.
        """
        return {}

    # Encoding.

    def encode_visual(
        self, visual: Tensor, mask: Tensor | None = None, description: Sequence[str] = ()
    ) -> dict[str, Tensor]:
        """Encode items.

        Args:
            visual: of a batch: pictures (n, 3, H, W), n ≥ 0, cached features (n, F), or tokens (n, T, F).
            mask: (n, T) bool, True = a token; None: all are.
            description: n texts, where the method reads descriptions.

        Returns:
            {"global": (n, D), ...}; at least `visual_parts`.
        """
        return {"global": encode_visual(self.backbone, visual)}

    def encode_text(self, texts: Sequence[str], lang: str, companion: Sequence[str] = ()) -> dict[str, Tensor]:
        """Encode texts of one language. English is encoded by the unchanged backbone, so nothing is forgotten.

        Args:
            texts: n ≥ 0 texts.
            lang: their language.
            companion: the aligned texts of the column that `MethodOptions.companions` names for the language, if any.

        Returns:
            {"global": (n, D), ...}; at least `text_parts`.
        """
        return {"global": encode_english(self.backbone, texts)}

    @property
    def truncated(self) -> int:
        """Texts that tokenisers have truncated in this process so far."""
        return self.backbone.truncated

    def image_transform(self) -> Callable[..., Tensor]:
        """How training sees pictures: as evaluation does, unless a method augments them (`leccr/augment.py`)."""
        return self.backbone.image_transform()

    # Scoring.

    @plain_cosine
    def scores(self, text: Mapping[str, Tensor], visual: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Parts of the score of every text with every item; no pair depends on the others.

        Args:
            text: the `text_parts` of Nt texts, each (Nt, ...).
            visual: the `visual_parts` of Nv items, each (Nv, ...).

        Returns:
            The parts by name, each (Nt, Nv).
        """
        return cosine(text, visual)

    def fusions(self) -> list[Fusion]:
        """How the parts become one score. The first is used in training; validation chooses among them for the test."""
        return [PLAIN]

    # Training.

    def outputs(self, stage: str, batch: Batch) -> dict[str, Tensor]:
        """The training forward, the only part inside the distributed wrapper.

        The result holds everything that a loss needs and that depends on a trained parameter, including a temperature:
        a wrapper that reduces gradients does not see any other use of a parameter. A rank may have no rows; its outputs
        are then empty but still depend on the parameters (`methods.features`).

        Args:
            stage: name of the training stage.
            batch: this rank's n ≥ 0 rows.

        Returns:
            Tensors by name, (n, ...) except for `shared_outputs`.
        """
        raise RuntimeError(f"method {self.name} has no training stage {stage!r}")

    def losses(self, stage: str, batch: Batch, outputs: dict[str, Tensor], ctx: Context) -> dict[str, Tensor]:
        """Loss terms by name, weighted. Each is this rank's share: the sum over ranks is the term of the global batch.

        Args:
            stage: name of the training stage.
            batch: this rank's rows.
            outputs: of the method for this batch.
            ctx: what the method may know of the global batch.
        """
        raise RuntimeError(f"method {self.name} has no training stage {stage!r}")

    # Stages in closed form.

    def drawn(self, stage: str) -> int:
        """How many captions are drawn before the stage sums up, for `begin`; 0: none."""
        return 0

    def begin(self, stage: str, query: Tensor) -> None:  # noqa: B027 (most stages draw nothing)
        """Set up what `statistics` needs, and what is part of the weights, from captions drawn from all.

        Args:
            stage: name of the stage, one in closed form.
            query: (m, Q) their query features, at most `drawn` of them; the same on every rank.
        """

    def statistics(self, stage: str, lang: str, rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Sums over some rows, from which `solutions` follow. The trainer adds them up over all rows of all ranks.

        Args:
            stage: name of the stage, one in closed form.
            lang: language of the rows' captions.
            rows: cached features, a row a caption: "query" (n, Q), "english" (n, F), and "visual" (n, Fv) if the stage
                reads it.

        Returns:
            Float64 tensors by name.
        """
        raise RuntimeError(f"method {self.name} has no stage {stage!r} in closed form")

    def solutions(self, stage: str, sums: Mapping[str, Tensor]) -> Iterator[tuple[dict[str, Any], dict[str, Tensor]]]:
        """Solve for the weights; validation keeps the best of several.

        Args:
            stage: name of the stage, one in closed form.
            sums: `statistics`, added up.

        Yields:
            (what distinguishes this solution, such as {"penalty": 0.1}; its weights by parameter name).

        Raises:
            ConfigError: The system is singular.
        """
        raise RuntimeError(f"method {self.name} has no stage {stage!r} in closed form")

    def query_identity(self) -> dict[str, Any] | None:
        """`feature_identity` of the query encoder, of which cached features have to be; None: there is none, or it is
        trained.
        """
        return None

    def starts_from(self, source: MethodOptions) -> tuple[str, ...]:
        """Which parameters keep their own start when a run begins with the weights of another one (`init_from`).

        Args:
            source: options of the method that was trained there.

        Returns:
            Prefixes of names that need not be among those weights.

        Raises:
            ConfigError: those weights mean something else here, whatever their names.
        """
        return ()

    def auxiliary_losses(self, stage: str, batch: Batch, outputs: dict[str, Tensor], ctx: Context) -> dict[str, Tensor]:
        """This rank's loss share of each network in `aux`, by its name. `outputs` are detached."""
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
