"""Hugging Face's sequence-to-sequence translation models, by id or local folder: MarianMT, NLLB, M2M-100, mBART-50, T5
with a prefix.
"""

from __future__ import annotations

import sys
from typing import Any, Literal

from pydantic import Field

from ccr_dist.errors import DataError, EngineError, let_pass
from ccr_dist.generate.engines import base
from ccr_dist.generate.engines.directions import direct

_NAME = "transformers"
_INSTALL = "pip install 'ccr-dist[train]' (some tokenizers also need: pip install sentencepiece)"


@base.translators.register(_NAME)
class TransformersSeq2Seq(base.Translator):
    """Translates greedily or with beam search, never by sampling. Texts of similar length share a batch; a text too
    long for the model is a bad item.

    Padding is masked, but the last bits of a batched sum depend on the batch, so a near-tie can be decided differently
    when a job resumes with other batches.
    """

    directed = ("model", "revision", "source_code", "target_code", "prefix")
    packages = ("torch", "transformers")

    class Options(base.EngineOptions):
        model: str = Field(description="Hugging Face id, or a local folder; required")
        revision: str | None = Field(None, description="of a Hugging Face id: branch, tag or commit")
        source_code: str | None = Field(
            None,
            description="the model's name for the source language, e.g. eng_Latn; default: found from the column's",
        )
        target_code: str | None = Field(
            None, description="the model's name for the target language, e.g. deu_Latn; default: found from --to"
        )
        prefix: str | None = Field(
            None,
            description=(
                "put before each text, e.g. 'translate English to German: ' or '>>pt<< '; default: found in the"
                " model's config or tokenizer"
            ),
        )
        beams: int = Field(1, ge=1, description="beams; 1: greedy")
        max_new_tokens: int = Field(128, ge=1, description="most tokens of a translation")
        texts: int = Field(32, ge=1, description="texts per batch")
        device: str = Field("auto", description="auto, cpu, cuda, cuda:1, mps ...")
        dtype: Literal["float32", "bfloat16", "float16"] = Field("float32", description="of the weights")

    def __init__(self, source: str, target: str, options: TransformersSeq2Seq.Options) -> None:
        self._source, self._target, self._options = source, target, options
        with base.needs(_NAME, _INSTALL):
            import torch
            import transformers
        self._torch, self._library = torch, transformers

    def identity(self) -> dict[str, Any]:
        options = self._options.model_dump(exclude={"model", "revision", "device", "texts"})
        model = base.model_identity(_NAME, self._options.model, self._options.revision)
        return {"engine": _NAME, **model, "source": self._source, "target": self._target, **options}

    def versions(self) -> dict[str, str]:
        return {"torch": self._torch.__version__, "transformers": self._library.__version__}

    def _from_pretrained(self, cls: Any, **kwargs: Any) -> Any:
        try:
            return cls.from_pretrained(self._options.model, revision=self._options.revision or "main", **kwargs)
        except (OSError, ValueError) as e:
            let_pass(e, self._options.model)
            raise EngineError(
                f"engine 'transformers': cannot load {cls.__name__} of {self._options.model!r}: {str(e)[:500]}"
            ) from e

    def load(self) -> None:
        torch, options = self._torch, self._options
        device = base.torch_device(options.device)
        with base.needs(_NAME, _INSTALL):
            self._tokenizer = self._from_pretrained(self._library.AutoTokenizer)
        model = self._from_pretrained(self._library.AutoModelForSeq2SeqLM, dtype=getattr(torch, options.dtype))
        self._model, self._device = model.eval().to(device), device
        self._generate: dict[str, Any] = {
            "num_beams": options.beams,
            "do_sample": False,
            "max_new_tokens": options.max_new_tokens,
        }
        self._direction = direct(
            self._tokenizer,
            model.config,
            source=options.source_code or self._source,
            target=options.target_code or self._target,
            prefix=options.prefix,
            model=options.model,
        )
        if self._direction.doubt is not None:
            doubt = (
                f"{self._direction.doubt}. The translations may be in any language: look at some, and at `ccr-dist"
                " shards quality`"
            )
            print(f"engine 'transformers': {doubt}", file=sys.stderr)
        if self._direction.target is not None:
            self._tokenizer.src_lang = self._direction.source
            self._generate["forced_bos_token_id"] = self._direction.ids[self._direction.target]
        self._ends = base.token_ids(model.generation_config.eos_token_id) | {self._tokenizer.eos_token_id}
        # then the token at the limit is always an end token
        self._forced = model.generation_config.forced_eos_token_id is not None
        limits = (
            self._tokenizer.model_max_length,
            getattr(model.config, "max_position_embeddings", None),
            getattr(model.config, "n_positions", None),
        )
        self._limit = min(limit for limit in limits if limit)

    def translate(self, texts: list[str]) -> list[str | DataError]:
        encoded = self._tokenizer([self._direction.prefix + text for text in texts])["input_ids"]
        results: list[str | DataError] = [""] * len(texts)
        short = []
        for i, ids in enumerate(encoded):
            if len(ids) > self._limit:
                results[i] = DataError(
                    f"a text of {len(ids)} tokens; {self._options.model} takes {self._limit}: {texts[i][:80]!r}"
                )
            else:
                short.append(i)
        short.sort(key=lambda i: len(encoded[i]))
        for start in range(0, len(short), self._options.texts):
            part = short[start : start + self._options.texts]
            for i, text in zip(part, self._forward([encoded[i] for i in part]), strict=True):
                results[i] = text
        return results

    def _forward(self, ids: list[list[int]]) -> list[str]:
        batch = self._tokenizer.pad({"input_ids": ids}, return_tensors="pt").to(self._device)
        try:
            with self._torch.inference_mode():
                output = self._model.generate(
                    input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], **self._generate
                )
        except RuntimeError as e:  # out of memory included
            raise EngineError(
                f"engine 'transformers': {self._options.model} failed on a batch {tuple(batch['input_ids'].shape)}: {e}"
            ) from e
        return [self._text(row) for row in output.tolist()]

    def _text(self, row: list[int]) -> str:
        """The translation in a row of token ids; a `Cut` if there is no end token before the limit."""
        text = str(self._tokenizer.decode(row, skip_special_tokens=True)).strip()
        limit = self._options.max_new_tokens
        end = next((i for i, token in enumerate(row[1:]) if token in self._ends), limit)  # row[0] starts the decoder
        return base.Cut(text) if len(row) > limit and end >= limit - self._forced else text
