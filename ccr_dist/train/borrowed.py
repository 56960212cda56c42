"""The method of a config that trains nothing: as it is built, or with the weights of the run or model that `init_from`
names.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ccr_dist.config import RunConfig, as_dict, base_files, with_base_files
from ccr_dist.data.storage.store import differences
from ccr_dist.errors import CheckpointError, ConfigError
from ccr_dist.methods.base import Method
from ccr_dist.methods.build import build_method
from ccr_dist.models import tensorfile
from ccr_dist.retriever import model_folder
from ccr_dist.retriever.kept_config import config_of_folder
from ccr_dist.retriever.load import built
from ccr_dist.retriever.model_folder import IN_RUN, WEIGHTS, Record
from ccr_dist.train.state.base_weights import files_of, weights_of


@dataclass(frozen=True)
class Borrowed:
    """The model that a config takes its weights from.

    Attributes:
        folder: the model folder.
        record: what it says of itself.
        asked: the config that takes them.
        config: the same, with the backbone, the trained method and the languages that it has learnt as the folder has
            them: its local files are the folder's copies.
    """

    folder: Path
    record: Record
    asked: RunConfig
    config: RunConfig

    @property
    def names(self) -> set[str]:
        """Of the tensors that the folder holds."""
        return set(tensorfile.read(self.folder / WEIGHTS)[0])

    @property
    def digest(self) -> str:
        """Of the file that holds the weights."""
        return self.record.files[WEIGHTS]

    def method(self) -> Method:
        """The method with the weights, on the CPU.

        Raises:
            ConfigError, CheckpointError: as `load_model`, and where `backbone.weights` names other weights than the
                model's.
        """
        _, method = built(self.folder, self.record, self.config)
        _require_backbone(method, self.asked)
        return method


def borrowed(config: RunConfig) -> Borrowed | None:
    """What a config without stages takes its weights from; None: its method has nothing that could be trained.

    Raises:
        ConfigError: `init_from` is missing, or names no complete run or model, or one of another method or backbone; or
            there is nothing to take.
        CheckpointError: a file of the model is missing or damaged.
    """
    learner, source = config.method.learner(), config.init_from
    if not learner.training_stages():
        if source is not None:
            raise ConfigError(
                f"{config.name}: init_from: {source}: method {learner.name!r} has no weights of its own to take from"
                " there; leave it out (weights of the backbone are named by backbone.weights)"
            )
        return None
    if source is None:
        raise ConfigError(
            f"{config.name}: init_from is not set, but method {config.method.name!r} takes the weights of a trained"
            f" {learner.name!r}: name the folder of its run or model, such as init_from=runs/NAME-s{config.seed}"
        )
    folder = next((each for each in (Path(source), Path(source) / IN_RUN) if model_folder.is_model(each)), None)
    if folder is None:
        raise ConfigError(
            f"{config.name}: init_from: {source}: there is no model folder, and no run that is complete; train it first"
        )
    record, there = model_folder.read(folder), config_of_folder(folder, ())
    changed = differences(_decisive(there), _decisive(config))
    if there.method.name != learner.name:
        changed = [f"method.name: there {there.method.name!r}, asked {learner.name!r}"]
    if changed:
        raise ConfigError(
            f"{config.name}: init_from: {source} holds another model than `method.of` and `backbone` say:\n  "
            + "\n  ".join(changed[:12])
            + "\nGive them the values that the run was trained with"
        )
    languages = {key: getattr(there.data, key) for key in ("targets", "query_features")}
    whole = {
        "method": config.method.model_copy(update={"of": there.method}),
        "backbone": there.backbone,
        "data": config.data.model_copy(update=languages),
    }
    return Borrowed(folder, record, config, config.model_copy(update=whole))


def untrained_method(config: RunConfig) -> Method:
    """The method of a config without stages. Raises ConfigError, CheckpointError as `borrowed`, `Borrowed.method`."""
    source = borrowed(config)
    return build_method(config, state={}) if source is None else source.method()


def weights_without_stages(config: RunConfig) -> str | None:
    """Digest of what the method of a config without stages computes with: the model's that `init_from` names, else the
    file's that `backbone.weights` names. Raises ConfigError, CheckpointError as `borrowed`.
    """
    source = borrowed(config)
    return weights_of(config) if source is None else source.digest


def files_without_stages(config: RunConfig) -> dict[str, str]:
    """Digests of the local files of base weights that the method of a config without stages reads (`files_of`); of a
    model that it takes its weights from, none: that has copies of its own.
    """
    return files_of(config) if config.init_from is None else {}


def _decisive(config: RunConfig) -> dict[str, Any]:
    """Method and backbone, without the paths of local files: a model folder has copies."""
    bare = config.model_copy(
        update={"method": config.method.learner(), "backbone": config.backbone.model_copy(update={"weights": None})}
    )
    values = {key: value for key, value in as_dict(bare).items() if key in ("method", "backbone")}
    return with_base_files(values, dict.fromkeys(base_files(bare), "a local file or folder"))


def given_weights(config: RunConfig) -> dict[str, Tensor]:
    """The backbone's tensors that `backbone.weights` names, by parameter name. CheckpointError: it cannot be read."""
    named = config.backbone.weights
    if named is None:
        return {}
    file = Path(named) / WEIGHTS if Path(named).is_dir() else Path(named)
    try:
        return {name: tensor for name, tensor in tensorfile.read(file)[0].items() if name.startswith("backbone.")}
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read ({error.strerror or error})") from None


def _require_backbone(method: Method, asked: RunConfig) -> None:
    """ConfigError where the model stands on other weights than `backbone.weights` names, besides those it trained."""
    trained = tuple(prefix for stage in asked.method.learner().training_stages() for prefix in method.trainable(stage))
    own = {f"backbone.{name}": tensor for name, tensor in method.backbone.state_dict().items()}
    for name, tensor in given_weights(asked).items():
        if not name.startswith(trained) and not (name in own and torch.equal(own[name], tensor)):
            raise ConfigError(
                f"{asked.name}: backbone.weights: {asked.backbone.weights} holds other weights ({name}) than the model"
                f" in init_from ({asked.init_from}) was trained on; name those, or null"
            )
