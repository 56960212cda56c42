"""One rank of a run that is not there: its processes, its method of fake tensors, its part of a batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ccr_dist.config import ENGLISH, RunConfig, StageConfig
from ccr_dist.data.stream.batch import Batch
from ccr_dist.data.stream.fields import Fields
from ccr_dist.data.table.dataset import Dataset
from ccr_dist.errors import CcrError, ConfigError
from ccr_dist.methods.base import Method
from ccr_dist.methods.build import build_method
from ccr_dist.train.assemble import training_texts
from ccr_dist.train.inputs import train_sets
from ccr_dist.train.strategies.strategy import Strategy

LONG = 600  # words: more than any text tower reads


class FakeStrategy(Strategy):
    """Rank 0 of a world of processes that do not exist; every rank holds all weights."""

    def __init__(self, world: int, precision: Literal["fp32", "bf16", "fp16"]) -> None:
        self.rank, self.world, self.device = 0, world, torch.device("cpu")
        self.name, self.precision, self.scaler, self.in_shards = "single", precision, None, False
        self._options: dict[str, Any] = {}


@contextmanager
def fake_processes(world: int) -> Iterator[None]:
    """Context manager: collectives of rank 0 of `world` ranks return at once, and move nothing.

    Raises:
        ConfigError: This process is a rank of a real run.
    """
    if dist.is_initialized():
        raise ConfigError("a run is planned in a process of its own: this one is a rank of a run; use `ccr-dist plan`")
    if world == 1:
        yield
        return
    import torch.distributed._tools.fake_collectives  # noqa: F401 (it registers collectives of fake tensors)
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=world)
    try:
        yield
    finally:
        dist.destroy_process_group()


def built(config: RunConfig, mode: Any, texts: Sequence[str] | None) -> Method:
    """The method of a run, all of whose tensors are fake.

    Args:
        config: of the run.
        mode: a FakeTensorMode that takes real inputs.
        texts: for methods that are sized by their vocabulary, in place of the training texts; None: those are read.

    Raises:
        ConfigError: the architecture of a model is not known, or the method's size depends on texts that are not
            there.
    """
    unread: list[CcrError] = []

    def vocabulary() -> Iterator[str]:
        try:
            yield from training_texts(config) if texts is None else texts
        except CcrError as error:
            unread.append(error)
            raise

    try:
        with _without_contents(mode):
            method = build_method(config, texts=vocabulary())
    except CcrError as error:
        if unread:
            raise ConfigError(
                f"{config.name}: the size of method {config.method.name!r} depends on the words of its training"
                f" captions, which cannot be read ({unread[0]}): make the datasets first, or plan with"
                " method.frontend.rows=all, which takes more: rows of all words are trained then"
            ) from error
        raise
    method.gradient_checkpointing = config.runtime.gradient_checkpointing
    return method


@contextmanager
def _without_contents(mode: Any) -> Iterator[None]:
    """Context manager: modules take fake tensors in place of the parameters and floating-point buffers that they are
    given.

    What they are given is `torch.empty`, whose pages nobody has touched, so that it takes no memory. Everything else
    is real: tokenisers count, and ids decide shapes.
    """
    register, register_buffer = nn.Module.register_parameter, nn.Module.register_buffer

    def parameter(self: nn.Module, name: str, param: Any) -> None:
        register(self, name, None if param is None else _fake_parameter(param, mode))

    def buffer(self: nn.Module, name: str, tensor: Any, persistent: bool = True) -> None:
        fake = isinstance(tensor, Tensor) and tensor.is_floating_point()
        register_buffer(self, name, _fake(tensor, mode) if fake else tensor, persistent)

    nn.Module.register_parameter, nn.Module.register_buffer = parameter, buffer  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]
        nn.Module.register_buffer = register_buffer  # type: ignore[method-assign]


@contextmanager
def conversions() -> Iterator[None]:
    """Context manager: modules that are converted (`.to`, `.float`) take the result in place of the parameter. torch
    would swap the two objects, which it refuses for tensors that a mode refers to.
    """

    def convert(self: nn.Module, fn: Any, recurse: bool = True) -> nn.Module:
        for child in self.children() if recurse else ():
            child._apply(fn)
        for table in (self._parameters, self._buffers):
            for name, value in table.items():
                if value is not None:
                    with torch.no_grad():
                        made = fn(value)
                    if made is not value:
                        kind = isinstance(value, nn.Parameter)
                        table[name] = nn.Parameter(made, value.requires_grad) if kind else made
        return self

    own = nn.Module._apply
    nn.Module._apply = convert  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module._apply = own  # type: ignore[method-assign]


def _fake(tensor: Tensor, mode: Any) -> Tensor:
    from torch._subclasses.fake_tensor import FakeTensor

    if isinstance(tensor, FakeTensor):
        return tensor
    with mode:
        return torch.empty(tensor.shape, dtype=tensor.dtype)


def _fake_parameter(parameter: nn.Parameter, mode: Any) -> nn.Parameter:
    made = _fake(parameter.detach(), mode)
    if made is parameter or type(parameter.data) is type(made):
        return parameter
    return nn.Parameter(made, parameter.requires_grad)


def texts_of(rows: int, tokens: int | None) -> list[str]:
    """Captions of one letter a word, which is a token for every tokeniser; None: more than any tower reads."""
    return [" ".join(["a"] * (LONG if tokens is None else max(1, tokens - 2)))] * rows


def batch_of(config: RunConfig, method: Method, fields: Fields, stage: str, rows: int, tokens: int | None) -> Batch:
    """Rows of a batch as the stage reads them, with fake pictures and features; texts and masks are real.

    Args:
        config: of the run.
        method: built of fake tensors.
        fields: columns that the stage reads.
        stage: name of the stage.
        rows: of this rank.
        tokens: positions of a caption; None: what the tower reads.
    """
    lang = next(iter(fields.targets), ENGLISH)
    texts = texts_of(rows, tokens)
    visual = None
    if fields.visual:
        visual = fake_rows(method, (rows, *_visual_shape(config, method, fields, stage)))
    values: dict[str, Any] = {}
    if fields.source_feature:
        values["source_feature"] = fake_rows(
            method, (rows, feature_width(config, stage, fields.source_feature, method, "text"))
        )
    if fields.back_features:
        column = next(iter(fields.back_features.values()))
        values["back_feature"] = fake_rows(method, (rows, feature_width(config, stage, column, method, "text")))
    if fields.query_features:
        column = next(iter(fields.query_features.values()))
        values["query_feature"] = fake_rows(method, (rows, feature_width(config, stage, column, method, "query")))
    if visual is not None and visual.ndim == 3:
        values["visual_mask"] = torch.ones(visual.shape[:2], dtype=torch.bool)
    return Batch(
        k=0,
        lang=lang,
        slots=torch.arange(rows),
        items=[f"{n:09d}" for n in range(rows)],
        group=torch.arange(rows),
        visual=visual,
        source_text=texts if fields.source else [],
        target_text=texts if fields.targets else [],
        source_feature=values.pop("source_feature", None),
        description=texts if fields.description else [],
        substituted=[],
        back_text=texts if fields.backs else [],
        **values,
    )


def fake_rows(method: Method, shape: tuple[int, ...]) -> Tensor:
    """A fake float32 tensor on the method's device."""
    like = next(iter([*method.backbone.parameters(), *method.net.parameters()]))
    return like.new_empty(shape, dtype=torch.float32)


def _visual_shape(config: RunConfig, method: Method, fields: Fields, stage: str) -> tuple[int, ...]:
    """Of one row: by the dataset, where it is there; else a picture, unless the column's name says features."""
    from PIL import Image

    assert fields.visual
    found = _of_dataset(config, stage, fields.visual)
    if found is None and fields.visual.startswith("feature"):
        return _encoded_picture(method, many=fields.many)
    if found is None:
        transform: Any = method.image_transform()
        drawn = {"seed": 0} if getattr(transform, "random", False) else {}
        return tuple(transform(Image.new("RGB", (64, 64)), **drawn).shape)
    if fields.many:
        return found if len(found) > 1 else (1, *found)
    return found[1:] if len(found) > 1 and found[0] == 1 else found


def _encoded_picture(method: Method, *, many: bool) -> tuple[int, ...]:
    """Shape of the features of one picture."""
    from PIL import Image

    with torch.no_grad():
        pixels = fake_rows(method, (1, *method.backbone.image_transform()(Image.new("RGB", (64, 64))).shape))
        wanted = method.backbone.image_tokens(pixels) if many else method.backbone.image_features(pixels)
    return tuple(wanted.shape[1:])


def picture_width(config: RunConfig, stage: str, column: str, method: Method) -> int:
    """Numbers of a picture's feature: by the dataset, where it is there, else by the backbone."""
    found = _of_dataset(config, stage, column)
    return int((found or _encoded_picture(method, many=False))[-1])


def _of_dataset(config: RunConfig, stage: str, column: str) -> tuple[int, ...] | None:
    """Shape of the first vector or vectors of a column; None: pictures, or no such dataset here."""
    try:
        dataset = Dataset.open(train_sets(config, stage)[0].path)
        opened = dataset.column(column)
        if opened.kind in ("image", "video"):
            return None
        return tuple(opened.value(0, 0).shape)
    except (CcrError, OSError, AttributeError, IndexError):
        return None


def feature_width(config: RunConfig, stage: str, column: str, method: Any, side: str) -> int:
    """Numbers of a cached feature: by the dataset, where it is there, else by the encoder. `side`: query or text."""
    found = _of_dataset(config, stage, column)
    if found is not None:
        return int(found[-1])
    with torch.no_grad():
        encode = method.query_features if side == "query" else method.backbone.text_features
        return int(encode(["a"]).shape[-1])


def largest_rows(batch: int, world: int) -> list[int]:
    """Rows of every rank, the first has most."""
    return [batch // world + (rank < batch % world) for rank in range(world)]


def settings_of(config: RunConfig, stage: str) -> StageConfig:
    """The settings of a stage of steps. ConfigError where there is no such stage, or it is in closed form."""
    settings = config.stages.get(stage)
    if settings is None:
        known = ", ".join(config.stages) or "none"
        raise ConfigError(f"{config.name}: no stage '{stage}' to plan; the config has: {known}")
    if not isinstance(settings, StageConfig):
        raise ConfigError(f"{config.name}: stage '{stage}' is in closed form and has no steps to trace")
    return settings
