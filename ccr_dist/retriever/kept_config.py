"""The run config that a run or model folder keeps. Without torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ccr_dist.config import RunConfig, with_base_files
from ccr_dist.data.storage.checked import read_checked
from ccr_dist.errors import ConfigError
from ccr_dist.methods.run_config import from_dict, load_config


def config_of_folder(folder: Path, overrides: Sequence[str]) -> RunConfig:
    """The config of a run or model folder, wherever it lies.

    Args:
        folder: of a run or a model.
        overrides: `key.sub=value` of the sections `data` and `runtime`.

    Raises:
        ConfigError: the folder is neither, or an override changes what the model is.
        CheckpointError: its record is damaged.
    """
    for text in overrides:
        if text.partition(".")[0] not in ("data", "runtime"):
            raise ConfigError(
                f"override {text}: {folder} holds a model that is made; only `data.…` and `runtime.…` can be changed"
            )
    for model in (folder, folder / "model"):
        file = model / "model.json"
        if file.is_file():
            record, _ = read_checked(file)
            copies = {key: model.resolve() / place for key, place in (record.get("copied") or {}).items()}
            values = with_base_files(record.get("config") or {}, copies)
            return from_dict(values, name=str(file), overrides=overrides)
    file = folder / "config.yaml"
    if not file.is_file():
        raise ConfigError(f"{folder}: neither a run folder (no config.yaml) nor a model folder (no model.json)")
    return load_config(file, overrides)
