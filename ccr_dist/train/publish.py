"""RUN/model: the model folder of a run, made when it ends, or later from what the run folder holds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ccr_dist.config import RunConfig, as_dict
from ccr_dist.data.storage.store import sha256_file
from ccr_dist.data.table.dataset import Dataset
from ccr_dist.data.table.inspect import origin_of
from ccr_dist.environment import environment
from ccr_dist.errors import CcrError, ConfigError, DataError
from ccr_dist.evaluate.retrieval import Fusion, ranges
from ccr_dist.methods.base import Method
from ccr_dist.methods.run_config import from_dict
from ccr_dist.models import tensorfile
from ccr_dist.retriever import model_folder
from ccr_dist.retriever.load import device_of, record_of, save_model
from ccr_dist.retriever.model_folder import IN_RUN
from ccr_dist.retriever.retriever import Retriever
from ccr_dist.train.borrowed import (
    borrowed,
    files_without_stages,
    given_weights,
    untrained_method,
    weights_without_stages,
)
from ccr_dist.train.inputs import wanted
from ccr_dist.train.state.run_folder import RunFolder
from ccr_dist.train.strategies.strategy import Step, Strategy
from ccr_dist.train.subjects import trained_method
from ccr_dist.train.validation import chosen_fusion, encoded_validation


def publish_model(
    config: RunConfig, strategy: Strategy, run: Path | None = None, *, fusion: Fusion | None = None
) -> Path:
    """Makes RUN/model unless it is there and is that of the run's weights. Collective.

    Args:
        config: of a complete run, or of a method that has nothing to train.
        strategy: the processes.
        run: the run folder; None: where the config puts it.
        fusion: that validation has chosen among the method's; None: it is asked, where there are several.

    Returns:
        The model folder.

    Raises:
        ConfigError: the run is not complete, or another one than `config`.
        CheckpointError: its weights are damaged.
    """
    folder = RunFolder(run or config.folder)
    path = folder.path / IN_RUN
    found: list[bool] = []

    def look() -> None:
        model_folder.clear(path)
        found.append(_is_current(path, config, folder))

    strategy.together(look if strategy.main else lambda: None)
    if strategy.agree(found[0] if found else None):
        return path
    built: list[Method] = []

    def build() -> None:
        built.append(trained_method(config, folder, tell=False)[0])

    strategy.together(build if strategy.main else lambda: None)
    several = strategy.agree(_several(built[0]) if built else None)
    if several and not built:
        build()
    kept = _frozen(config, built[0], strategy, fusion) if several else _plain()
    strategy.together(lambda: _save(path, config, folder, built[0], kept) if strategy.main else None)
    return path


def model_of(run: Path) -> Path:
    """The model folder of a run folder, made if it is missing. For one process.

    Args:
        run: a run folder, wherever it was moved to.

    Raises:
        ConfigError: `run` is no run folder, or not complete.
        CheckpointError: its weights or its config are damaged.
    """
    path = run / IN_RUN
    if not (run / "config.yaml").is_file():
        if model_folder.is_model(path):  # of a method that has nothing to train
            return path
        raise ConfigError(f"{run}: neither a run folder (no config.yaml) nor a model folder (no model.json)")
    values, _ = RunFolder(run).config()
    assert values is not None
    config = from_dict(values, name=str(run / "config.yaml"))
    if not config.stages or not _is_current(path, config, RunFolder(run)):
        precision = config.runtime.precision if torch.cuda.is_available() else "fp32"
        runtime = config.runtime.model_copy(update={"precision": precision})
        publish_model(config, Strategy(runtime, world=1), run)
    return path


def untrained_model(config: RunConfig, *, device: str = "auto") -> Retriever:
    """The retriever of a method that has nothing to train. No folder is made.

    Args:
        config: of the method.
        device: as for `load_model`.

    Raises:
        ConfigError: the method has to be trained first, or fuses parts of a score, which validation decides.
    """
    if config.stages:
        raise ConfigError(f"{config.name}: method {config.method.name!r} has to be trained; name its run folder")
    method = untrained_method(config)
    if _several(method):
        raise ConfigError(f"{config.name}: its score has several parts; `ccr-dist evaluate` makes its model folder")
    record = record_of(config, method, tensors=(), fusion=_plain(), facts={})
    return Retriever(record, config, method, folder=None, device=device_of(device))


def _is_current(path: Path, config: RunConfig, folder: RunFolder) -> bool:
    try:
        record = model_folder.read(path)
    except CcrError:  # missing, damaged, or of another version: it is made again
        return False
    if not config.stages and (record.config["method"], record.config["backbone"]) != _named(config):
        return False
    if not config.stages and record.facts.get("files", {}) != files_without_stages(config):
        return False
    return record.facts.get("weights") == _weights(config, folder)


def _named(config: RunConfig) -> tuple[Any, Any]:
    """Sections `method` and `backbone`, as a model folder that copies no files has them."""
    plain = as_dict(config)
    return plain["method"], {**plain["backbone"], "weights": None}


def _weights(config: RunConfig, folder: RunFolder) -> str | None:
    """Digest of the weights that the model folder is made of."""
    if not config.stages:
        return weights_without_stages(config)
    file = folder.path / "model.safetensors"
    return sha256_file(file) if file.is_file() else None


def _several(method: Method) -> bool:
    fusions = method.fusions()
    return len(fusions) > 1 or fusions[0].minmax or len(fusions[0].weights) > 1


def _plain() -> dict[str, Any]:
    return {"weights": {"global": 1.0}, "minmax": False, "ranges": {}}


def _frozen(config: RunConfig, method: Method, strategy: Strategy, fusion: Fusion | None) -> dict[str, Any]:
    """The fusion that validation likes best, and the ranges of the parts there, so that a score does not depend on the
    other queries.
    """
    wrapped = Step(method).to(strategy.device)
    fusion = fusion or chosen_fusion(config, method, wrapped, strategy)
    found: dict[str, tuple[float, float]] = {}
    if fusion.minmax:
        val = encoded_validation(config, method, wrapped, strategy)
        for asked in val.queries.values():
            for part, (low, high) in ranges(asked.bank, val.visual, method.scores, fusion).items():
                before = found.get(part, (low, high))
                found[part] = min(low, before[0]), max(high, before[1])
    return frozen(fusion, found)


def frozen(fusion: Fusion, found: Mapping[str, tuple[float, float]]) -> dict[str, Any]:
    """A fusion as a model folder records it.

    Args:
        fusion: chosen on validation.
        found: part -> least and largest value there; empty without min-max.
    """
    parts = {part: list(ends) for part, ends in found.items()}
    return {"weights": dict(fusion.weights), "minmax": fusion.minmax, "ranges": parts}


def _save(path: Path, config: RunConfig, folder: RunFolder, method: Method, fusion: Mapping[str, Any]) -> None:
    source = None if config.stages else borrowed(config)
    trained: set[str] = set()
    selected, data = None, _data(config)
    if config.stages:
        weights, kept = tensorfile.read(folder.path / "model.safetensors")
        trained, selected = set(weights), (kept or {}).get("best")
    elif source is not None:
        trained, selected = source.names, source.record.facts.get("selected")
        data = [*source.record.facts.get("data", ()), *data]
    facts = {
        "weights": _weights(config, folder),
        **({} if config.stages else {"files": files_without_stages(config)}),
        "selected": selected,
        "label": config.row,
        "score": str(Fusion(fusion["weights"], fusion["minmax"])),
        "data": data,
        **environment(),
    }
    own, given = config if source is None else source.config, given_weights(config).keys()
    save_model(path, own, method, trained=trained, given=given, fusion=fusion, facts=facts)
    for file in sorted(folder.results.glob("*.json")):
        model_folder.keep_result(path, file)


def _data(config: RunConfig) -> list[dict[str, Any]]:
    """Which columns the run read, who made them, and under which licence; a dataset that is gone is named alone."""
    found: dict[str, dict[str, Any]] = {}
    for (path, column), key in wanted(config).items():
        try:
            dataset = Dataset.open(path)
            made = dataset.column(column)
        except DataError:
            found.setdefault(path, {"dataset": path, "missing": True})
            continue
        entry = found.setdefault(
            path, {"dataset": dataset.name, "split": dataset.split, "rows": dataset.rows, "columns": {}}
        )
        licence = made.provenance.get("licence")
        about = {"key": key, "origin": origin_of(made.plan, made.provenance), "licence": licence}
        entry.setdefault("columns", {})[column] = about
    return list(found.values())
