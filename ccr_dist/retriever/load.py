"""A model folder to a `Retriever`, and a method with its weights to a model folder."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ccr_dist.config import RunConfig, as_dict, base_files, with_base_files
from ccr_dist.errors import CheckpointError, ConfigError
from ccr_dist.methods.base import Method
from ccr_dist.methods.build import build_method, learnt_languages
from ccr_dist.models import tensorfile
from ccr_dist.models.backbones.backbone import digest_tensors
from ccr_dist.retriever import model_folder
from ccr_dist.retriever.kept_config import config_of_folder
from ccr_dist.retriever.model_folder import WEIGHTS, Record
from ccr_dist.retriever.retriever import Retriever, query_languages
from ccr_dist.train.state.checkpoint import restore_weights

WITHIN = "backbone.weights"  # lies in model.safetensors


def load_model(folder: Path, *, device: str = "auto") -> Retriever:
    """The retriever in a model folder.

    Args:
        folder: the model folder.
        device: `auto` (the accelerator, else the CPU), `cpu`, `cuda`, `cuda:1` ...

    Raises:
        ConfigError: it is no model folder, or a base model cannot be loaded.
        CheckpointError: a file is missing or damaged, or a base model is another one than the model was made with.
    """
    device = device_of(device)
    record = model_folder.read(folder)
    config, method = built(folder, record)
    return Retriever(record, config, method, folder=folder, device=device)


def device_of(name: str) -> str:
    """The device of a name; `auto`: the accelerator of this machine, else the CPU. Raises ConfigError for one that
    this machine, or this build of PyTorch, has not.
    """
    if name != "auto":
        try:
            torch.zeros(1, device=name).cpu()
        except (RuntimeError, AssertionError, TypeError) as error:  # a build without CUDA asserts
            reason = str(error).splitlines()[0]
            raise ConfigError(f"device {name!r} cannot be used here ({reason}); name another, or auto") from None
        return name
    found = torch.accelerator.current_accelerator(check_available=True)
    return "cpu" if found is None else str(found)


def built(folder: Path, record: Record, config: RunConfig | None = None) -> tuple[RunConfig, Method]:
    """Config and method of a model folder, with its weights, on the CPU.

    Args:
        folder: the model folder.
        record: what `model_folder.read` found there.
        config: in place of the folder's own, which it may differ from in data and runtime.

    Raises:
        ConfigError, CheckpointError: as `load_model`.
    """
    config = config or config_of_folder(folder, ())
    method = build_method(config, state=record.state)
    weights, _ = tensorfile.read(folder / WEIGHTS)
    tensors = _tensors(method)
    own = {name: tensor for name, tensor in tensors.items() if name.startswith("net.") or name in weights}
    restore_weights(own, weights, str(folder / WEIGHTS))
    method.backbone.trainable_parameters("none")
    if base_digest(method, weights.keys()) != record.base:
        raise CheckpointError(
            f"{folder}: the base models ({method.backbone.name}) that are installed here have other weights than those"
            f" that the model was made with; it was made with {record.facts.get('base', 'an unknown version')}, here is"
            f" {method.backbone.description()}"
        )
    return config, method


def _tensors(method: Method) -> dict[str, nn.Parameter | Tensor]:
    """Parameters of method and backbone, and the backbone's buffers, by name."""
    buffers = {f"backbone.{name}": buffer for name, buffer in method.backbone.state_dict(keep_vars=True).items()}
    return {**buffers, **method.named_parameters()}


def base_digest(method: Method, kept: Collection[str]) -> str:
    """Digest of the backbone's tensors that are not in the model folder's own file."""
    return digest_tensors(
        {name: tensor for name, tensor in _tensors(method).items() if name.startswith("backbone.") and name not in kept}
    )


def own_tensors(
    config: RunConfig, method: Method, trained: Collection[str], given: Collection[str]
) -> dict[str, Tensor]:
    """What model.safetensors has to hold: all that public base models do not.

    Args:
        config: of the run.
        method: with the run's weights.
        trained: names of the tensors that training has changed.
        given: names of the tensors that came from `backbone.weights`.
    """
    tensors, random = _tensors(method), config.backbone.untrained()
    named = {*trained, *given}

    def ours(name: str) -> bool:
        part, _, below = name.partition(".")
        return part == "net" or name in named or random or method.backbone.part_of(below) == "heads"

    return {name: tensor.detach() for name, tensor in tensors.items() if ours(name)}


def save_model(
    folder: Path,
    config: RunConfig,
    method: Method,
    *,
    trained: Collection[str],
    given: Collection[str],
    fusion: Mapping[str, Any],
    facts: Mapping[str, Any],
) -> Record:
    """Writes a model folder, or replaces one.

    Args:
        folder: to make.
        config: of the run.
        method: with the run's weights.
        trained, given: as for `own_tensors`.
        fusion: {"weights": {part: weight}, "minmax": bool, "ranges": {part: (low, high)}}.
        facts: for people.

    Raises:
        ConfigError: `folder` is something else.
        StorageError: the disk is full.
    """
    files = {key: path for key, path in base_files(config).items() if key != WITHIN}
    tensors = own_tensors(config, method, trained, given)
    record = record_of(config, method, tensors=tensors.keys(), fusion=fusion, facts=facts)
    # named by where they lie in the folder: the paths of this machine say nothing elsewhere
    copied = {key: f"{model_folder.BASE}/{key}/{path.resolve().name}" for key, path in files.items()}
    named = with_base_files(record.config, copied)
    sources: dict[str, Path | bytes] = {copied[key]: path for key, path in files.items()}
    if (place := copied.get("backbone.model")) is not None:
        sources |= {f"{place}/{name}": data for name, data in method.backbone.settings().items()}
    return model_folder.write(folder, replace(record, config=named, copied=copied), tensors, sources)


def record_of(
    config: RunConfig, method: Method, *, tensors: Collection[str], fusion: Mapping[str, Any], facts: Mapping[str, Any]
) -> Record:
    """What a model folder says of a model, before its files are there.

    Args:
        config: of the run.
        method: with the run's weights.
        tensors: names of those that the folder holds.
        fusion, facts: as for `save_model`.
    """
    plain = as_dict(config)
    plain["backbone"]["weights"] = None
    return Record(
        name=f"{config.name}-s{config.seed}",
        config=plain,
        state=method.state(),
        languages=query_languages(config, learnt_languages(config)),
        fusion=dict(fusion),
        base=base_digest(method, tensors),
        copied={},
        files={},
        facts={**facts, "base": method.backbone.description()},
    )
