"""From the config of a backbone to the backbone, with its weights."""

from __future__ import annotations

from pathlib import Path

import torch

from ccr_dist.config import BackboneConfig
from ccr_dist.errors import CheckpointError, ConfigError
from ccr_dist.models import tensorfile
from ccr_dist.models.backbones import registry
from ccr_dist.models.backbones.backbone import Backbone
from ccr_dist.models.backbones.weightless import only_architecture


def build_backbone(cfg: BackboneConfig) -> Backbone:
    """The backbone of a config, frozen, on the CPU. Random weights, where asked for, are the same in every process.

    ConfigError when a model, package or file cannot be loaded, with what to install or change.
    """
    kind = registry.backbone(cfg.kind)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(cfg.random_start())
        backbone = kind(cfg)
    if cfg.weights is not None and not only_architecture():
        load_weights(backbone, Path(cfg.weights))
    backbone.trainable_parameters("none")
    return backbone


def load_weights(backbone: Backbone, path: Path) -> None:
    """Copies the tensors `backbone.*` of a safetensors file, or of a run folder's `model.safetensors`, over the
    backbone's.

    ConfigError when the file is missing or damaged (one of a run carries a digest), has no such tensors, or has some
    that do not fit.
    """
    file = path / "model.safetensors" if path.is_dir() else path
    if not file.is_file():
        raise ConfigError(
            f"backbone weights '{path}': no such file, nor the folder of a run or model with model.safetensors. Train"
            " that run first."
        )
    own = backbone.state_dict()
    try:
        tensors, _ = tensorfile.read(file)
    except CheckpointError as error:
        raise ConfigError(f"backbone weights {error}") from error
    found = {key.removeprefix("backbone."): tensor for key, tensor in tensors.items() if key.startswith("backbone.")}
    if not found:
        raise ConfigError(
            f"backbone weights {file}: no tensors named backbone.*; the run it comes from trained nothing of the"
            " backbone"
        )
    wrong = [key for key, tensor in found.items() if key not in own or own[key].shape != tensor.shape]
    if wrong:
        raise ConfigError(
            f"backbone weights {file}: {len(wrong)} tensors do not fit {backbone.name}, for example backbone.{wrong[0]}"
        )
    backbone.load_state_dict(found, strict=False)
