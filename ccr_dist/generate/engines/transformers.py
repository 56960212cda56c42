"""Any Hugging Face sequence-to-sequence translation model, by id or local folder: MarianMT, NLLB, M2M-100, mBART-50, T5 with a prefix."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from ccr_dist.errors import DataError, EngineError
from ccr_dist.generate.engines import base

_NAME = "transformers"
_INSTALL = "pip install 'ccr-dist[train]' (some tokenizers also need: pip install sentencepiece)"


@base.translators.register(_NAME)
class TransformersSeq2Seq(base.Translator):
    """Beam search or greedy, never sampled. Texts of similar length share a batch; a text too long for the model is an item error.

    Padding is masked, but the last bits of a batched sum depend on the batch, so a near-tie can fall differently when a job resumes with
    other batches.
    """

    directed = ("model", "revision", "source_code", "target_code", "prefix")

    class Options(base.EngineOptions):
        model: str = Field(description="Hugging Face id, or a local folder; required")
        revision: str | None = Field(None, description="of a Hugging Face id: branch, tag or commit")
        source_code: str | None = Field(None, description="the model's name for the source language, e.g. eng_Latn; default: the column's")
        target_code: str | None = Field(None, description="the model's name for the target language, e.g. deu_Latn; default: the column's")
        prefix: str = Field("", description="put before each text, e.g. 'translate English to German: ' or '>>pt<< '")
        beams: int = Field(1, ge=1, description="beams; 1: greedy")
        max_new_tokens: int = Field(128, ge=1, description="longest translation, in tokens")
        texts: int = Field(32, ge=1, description="texts a forward batch")
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
            raise EngineError(f"engine 'transformers': cannot load {cls.__name__} of {self._options.model!r}: {str(e)[:500]}") from e

    def load(self) -> None:
        torch, options = self._torch, self._options
        device = base.torch_device(options.device)
        with base.needs(_NAME, _INSTALL):
            self._tokenizer = self._from_pretrained(self._library.AutoTokenizer)
        model = self._from_pretrained(self._library.AutoModelForSeq2SeqLM, dtype=getattr(torch, options.dtype))
        self._model, self._device = model.eval().to(device), device
        self._generate: dict[str, Any] = {"num_beams": options.beams, "do_sample": False, "max_new_tokens": options.max_new_tokens}
        if hasattr(self._tokenizer, "src_lang"):  # a many-to-many model: both languages have to be said
            self._language_id(source := options.source_code or self._source)
            self._tokenizer.src_lang = source
            self._generate["forced_bos_token_id"] = self._language_id(options.target_code or self._target)
        limits = (
            self._tokenizer.model_max_length,
            getattr(model.config, "max_position_embeddings", None),
            getattr(model.config, "n_positions", None),
        )
        self._limit = min(limit for limit in limits if limit)

    def _language_id(self, code: str) -> int:
        tokenizer = self._tokenizer
        known = getattr(tokenizer, "lang_code_to_token", None) or {}
        number = tokenizer.convert_tokens_to_ids(known.get(code, code))
        if number is None or number == tokenizer.unk_token_id:
            names = [*known] or [token for token in tokenizer.all_special_tokens if "_" in token]
            raise EngineError(
                f"engine 'transformers': {self._options.model!r} does not know the language {code!r}; set source_code and target_code. "
                f"It has: {', '.join(sorted(names)[:300]) or 'see its model card'}"
            )
        return int(number)

    def translate(self, texts: list[str]) -> list[str | DataError]:
        encoded = self._tokenizer([self._options.prefix + text for text in texts])["input_ids"]
        results: list[str | DataError] = [""] * len(texts)
        short = []
        for i, ids in enumerate(encoded):
            if len(ids) > self._limit:
                results[i] = DataError(f"a text of {len(ids)} tokens; {self._options.model} takes {self._limit}: {texts[i][:80]!r}")
            else:
                short.append(i)
        short.sort(key=lambda i: len(encoded[i]))
        for start in range(0, len(short), self._options.texts):
            part = short[start : start + self._options.texts]
            for i, text in zip(part, self._forward([encoded[i] for i in part]), strict=True):
                results[i] = text.strip()
        return results

    def _forward(self, ids: list[list[int]]) -> list[str]:
        batch = self._tokenizer.pad({"input_ids": ids}, return_tensors="pt").to(self._device)
        try:
            with self._torch.inference_mode():
                output = self._model.generate(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], **self._generate)
        except RuntimeError as e:  # out of memory included
            raise EngineError(
                f"engine 'transformers': {self._options.model} failed on a batch {tuple(batch['input_ids'].shape)}: {e}"
            ) from e
        return list(self._tokenizer.batch_decode(output, skip_special_tokens=True))
