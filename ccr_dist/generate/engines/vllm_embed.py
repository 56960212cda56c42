"""Embedding models by vLLM's pooling API: texts in, a vector each out, pooled as the model's files say."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from ccr_dist.data.storage import store
from ccr_dist.errors import ConfigError, EngineError
from ccr_dist.generate.engines import base, vllm
from ccr_dist.generate.engines.embedder import Embedded, Embedder, embedders
from ccr_dist.generate.engines.guardian import Guardian

_NAME = "vllm"
_OWN = {"runner", "pooler_config", "tokenizer_revision", "seed", "enable_prefix_caching", "tensor_parallel_size"}
_CHARACTERS = 64  # of a token, at most; a tokeniser reads a whole text before it cuts it


class VllmEmbedOptions(base.EngineOptions):
    """Options of the embedding engine `vllm`."""

    model: str = Field(description="Hugging Face id or local folder of an embedding model; required")
    revision: str | None = Field(None, description="branch, tag or commit of a Hugging Face id")
    prompt: str = Field("", description='stands before every text, such as "query: "; as the model\'s card says')
    pooling: Literal["LAST", "CLS", "MEAN"] | None = Field(
        None, description="which states a vector is made of; default: as the model's files say"
    )
    normalize: bool = Field(True, description="vectors of unit length")
    dimensions: int | None = Field(
        None, gt=0, description="only the first so many values, for models that were trained for it (Matryoshka)"
    )
    trust_remote_code: bool = Field(False, description="run code that comes with the model")
    tensor_parallel: int = Field(1, ge=1, description="GPUs that share the model")
    dtype: str = Field("auto", description="auto, bfloat16, float16, float32")
    max_model_len: int | None = Field(
        None, gt=0, description="longest text in tokens; longer ones are cut, and counted; default: the model's"
    )
    gpu_memory_utilization: float = Field(0.9, gt=0, le=1, description="share of each GPU's memory")
    max_num_seqs: int = Field(256, ge=1, description="texts that the engine works on at once")
    enforce_eager: bool = Field(False, description="no compilation and no CUDA graphs: quick to start, slower to run")
    engine_args: dict[str, Any] = Field({}, description="any further argument of vLLM's EngineArgs")


@embedders.register(_NAME)
class VllmEmbedder(Embedder):
    """One engine on one set of GPUs."""

    Options = VllmEmbedOptions
    packages = ("vllm",)

    def __init__(self, options: VllmEmbedOptions) -> None:
        vllm.prepare()
        if taken := sorted((_OWN | set(VllmEmbedOptions.model_fields)) & options.engine_args.keys()):
            raise ConfigError(
                f"engine 'vllm': engine_args has {', '.join(taken)}; such are options of their own, or not for you"
                " to set"
            )
        self._options = options
        self.name = Path(options.model).name
        self._llm: Any = None
        self._guardian: Guardian | None = None

    def identity(self) -> dict[str, Any]:
        options = self._options
        model = base.model_identity(_NAME, options.model, options.revision)
        if "files" in model:  # folders of sentence-transformers say in subfolders how they pool
            folder = Path(options.model)
            inner = sorted(file for file in folder.glob("[!.]*/*") if file.is_file())
            digests = {str(file.relative_to(folder)): store.sha256_file(file) for file in inner}
            model |= {"modules": store.digest_json(digests)} if digests else {}
        names = {"dtype", "max_model_len", "engine_args", "prompt", "pooling", "normalize", "dimensions"}
        return {"engine": _NAME, **model, **options.model_dump(include=names)}

    def versions(self) -> dict[str, str]:
        return vllm.installed()

    def load(self) -> None:
        options = self._options
        with base.needs(_NAME, vllm.INSTALL):
            from vllm import LLM
            from vllm.config import PoolerConfig
        self._guardian = Guardian()
        try:
            self._llm = LLM(
                options.model,
                **options.engine_args,
                runner="pooling",
                pooler_config=PoolerConfig(seq_pooling_type=options.pooling) if options.pooling else None,
                revision=options.revision,
                tokenizer_revision=options.revision,
                trust_remote_code=options.trust_remote_code,
                dtype=options.dtype,  # type: ignore[arg-type]
                max_model_len=options.max_model_len,
                tensor_parallel_size=options.tensor_parallel,
                gpu_memory_utilization=options.gpu_memory_utilization,
                max_num_seqs=options.max_num_seqs,
                enforce_eager=options.enforce_eager,
                enable_prefix_caching=False,
            )
        except TypeError as e:
            raise ConfigError(f"engine 'vllm': engine_args: {e}") from e
        except Exception as e:  # vLLM lets errors of every library through
            raise EngineError(
                f"engine 'vllm': {options.model} could not be loaded as an embedding model: {type(e).__name__}:"
                f" {str(e)[-800:]}"
            ) from e
        finally:
            self._guardian.loaded()
        config = self._llm.llm_engine.model_config
        self._tokenizer = self._llm.get_tokenizer()
        self._limit: int = config.max_model_len
        self._lower = bool((config.encoder_config or {}).get("do_lower_case", False))
        self._width = options.dimensions or config.embedding_size

    @property
    def width(self) -> int:
        return self._width

    def embed(self, texts: list[str]) -> Embedded:
        from vllm import PoolingParams

        rows, cut = self._ids(texts)
        asked = [number for number, ids in enumerate(rows) if ids]
        empty = dict.fromkeys(set(range(len(texts))) - set(asked), "the model's tokeniser makes nothing of the text")
        options = self._options
        parameters = PoolingParams(use_activation=options.normalize, dimensions=options.dimensions)
        try:
            prompts: Any = [{"prompt_token_ids": rows[number]} for number in asked]
            outputs = self._llm.embed(prompts, pooling_params=parameters, use_tqdm=False) if prompts else []
        except Exception as e:  # dead engine process, out of memory, a bug on a device
            raise EngineError(f"engine 'vllm' is gone: {type(e).__name__}: {str(e)[-800:]}") from e
        vectors = np.full((len(texts), self._width), np.nan, np.float32)
        for number, output in zip(asked, outputs, strict=True):
            vectors[number] = output.outputs.embedding
        return Embedded(vectors, cut, empty)

    def _ids(self, texts: list[str]) -> tuple[list[list[int]], list[bool]]:
        """Token ids of each text with its prompt, and which were too long."""
        most = _CHARACTERS * self._limit
        whole = [self._options.prompt + (text.lower() if self._lower else text) for text in texts]
        ids = self._tokenizer([text[:most] for text in whole], truncation=True, max_length=self._limit)["input_ids"]
        full = [number for number, row in enumerate(ids) if len(row) == self._limit]
        cut = [len(text) > most for text in whole]
        for number in full:
            roomier = self._tokenizer(whole[number][:most], truncation=True, max_length=self._limit + 1)["input_ids"]
            cut[number] = cut[number] or len(roomier) > self._limit
        return ids, cut

    def close(self) -> None:
        if self._llm is not None:
            self._llm, core = None, self._llm.llm_engine.engine_core
            core.shutdown()
        if self._guardian is not None:
            self._guardian.close()
            self._guardian = None
