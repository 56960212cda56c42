"""Hugging Face models that answer about pictures (AutoModelForImageTextToText) or only text (AutoModelForCausalLM), by
id or folder.

The plain reference beside vLLM: one whole batch after the other, no server, any device that torch supports.
"""

from __future__ import annotations

import json
from collections import deque
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field

from ccr_dist.errors import DataError, EngineError, let_pass
from ccr_dist.generate.engines import base
from ccr_dist.generate.engines.chat import FPS, Chat, ChatPrompt, ModelOptions, load_processor, unseen
from ccr_dist.generate.engines.generator import Answer, Generation, Generator, Request, generators, request_seed
from ccr_dist.generate.text.chat_marks import is_mark_of_thinking

_NAME = "transformers"
_INSTALL = "pip install 'ccr-dist[train]'"
_UNASKED = ("vision-encoder-decoder", "pix2struct", "pp_formulanet")


class TransformersOptions(ModelOptions):
    """Options of the generation engine `transformers`."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="of the weights; auto: as they were saved"
    )
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1, mps ...")
    batch: int = Field(8, ge=1, description="requests per batch; with sampling always 1, each with its seed")


@dataclass(frozen=True)
class RenderedPrompt:
    """A rendered request.

    Attributes:
        prompt: What the processor takes.
        max_tokens: Most tokens of the answer.
        schema: A JSON schema that the answer must follow, as text, or None.
        seed: Seed of sampling.
        id: The request's id.
    """

    prompt: ChatPrompt
    max_tokens: int
    schema: str | None
    seed: int
    id: str

    def kind(self) -> tuple[Any, ...]:
        """Requests share a batch only if this is equal."""
        return bool(self.prompt.images), bool(self.prompt.frames), self.prompt.special, self.schema


@dataclass(frozen=True)
class RenderPrompt:
    """Renders requests with the model's chat template; can be pickled."""

    chat: Chat

    def __call__(self, request: Request) -> RenderedPrompt:
        schema = json.dumps(request.schema) if request.schema else None
        return RenderedPrompt(
            self.chat(request), request.max_tokens, schema, request_seed(self.chat.options.seed, request.id), request.id
        )


@generators.register(_NAME)
class TransformersGenerator(Generator):
    """Runs batches, padded on the left; a finished answer waits for the others of its batch.

    Padding is masked, but the last bits of a batched sum depend on the batch, so a near-tie can be decided differently
    in another batch.
    """

    Options = TransformersOptions
    packages = ("torch", "transformers")

    def __init__(self, options: TransformersOptions) -> None:
        self._options, self._chat = options, Chat(_NAME, options)
        with base.needs(_NAME, _INSTALL):
            import torch
            import transformers
        self._torch, self._library = torch, transformers
        self._batch = 1 if options.temperature else options.batch
        self.in_flight = self._batch
        self._queue: deque[tuple[int, RenderedPrompt]] = deque()

    def identity(self) -> dict[str, Any]:
        model = base.model_identity(_NAME, self._options.model, self._options.revision)
        return {"engine": _NAME, **model, "dtype": self._options.dtype, "sampling": self._options.sampling()}

    def versions(self) -> dict[str, str]:
        return {"torch": self._torch.__version__, "transformers": self._library.__version__}

    def load(self) -> None:
        options, library = self._options, self._library
        self._processor = load_processor(_NAME, options.model, options.revision, options.trust_remote_code)
        self._tokenizer = getattr(self._processor, "tokenizer", self._processor)
        self._tokenizer.padding_side = "left"
        special = {
            number: str(token) for number, token in self._tokenizer.added_tokens_decoder.items() if token.special
        }
        # stay in the text
        self._marks = {number for number, token in special.items() if is_mark_of_thinking(token)}
        self._left_out = special.keys() - self._marks
        if self._tokenizer.pad_token_id is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token
        settings: dict[str, Any] = {
            "revision": options.revision or "main",
            "trust_remote_code": options.trust_remote_code,
        }
        dtype = options.dtype if options.dtype == "auto" else getattr(self._torch, options.dtype)
        try:
            config = library.AutoConfig.from_pretrained(options.model, **settings)
            sees = type(config) in library.AutoModelForImageTextToText._model_mapping
            cls = library.AutoModelForImageTextToText if sees else library.AutoModelForCausalLM
            if config.model_type in _UNASKED:
                raise ValueError(f"models of the family {config.model_type!r} take no question beside a picture")
            model = cls.from_pretrained(options.model, dtype=dtype, **settings)
        except (OSError, ValueError, ImportError) as e:
            let_pass(e, options.model)
            raise EngineError(f"engine 'transformers': cannot load {options.model!r}: {str(e)[:500]}") from e
        self._device = base.torch_device(options.device)
        self._model = model.eval().to(self._device)
        text = config.get_text_config()
        self._vocabulary, self._longest = int(text.vocab_size), getattr(text, "max_position_embeddings", None)
        self._ends = base.token_ids(model.generation_config.eos_token_id)
        inner = getattr(model, "language_model", None)  # of BLIP-2: a T5, or a language model alone
        self._decodes_apart = any(getattr(one, "is_encoder_decoder", False) for one in (config, inner and inner.config))
        # BLIP writes its start token into the first column, where shorter prompts have padding
        if config.model_type == "blip":
            self._batch = 1
            self._ends.add(config.text_config.sep_token_id)
        else:
            model.generation_config.pad_token_id = self._tokenizer.pad_token_id

    def close(self) -> None:
        self._queue.clear()
        self._model = None

    def renderer(self) -> RenderPrompt:
        return RenderPrompt(self._chat)

    def start(self, number: int, item: RenderedPrompt) -> None:
        self._queue.append((number, item))

    def advance(self) -> list[tuple[int, Answer]]:
        if not self._queue:
            return []
        kind = self._queue[0][1].kind()
        alike = [entry for entry in self._queue if entry[1].kind() == kind][: self._batch]
        chosen = {number for number, _ in alike}
        self._queue = deque(entry for entry in self._queue if entry[0] not in chosen)
        items = [item for _, item in alike]
        try:
            answers = self._answers(items)
        except (ValueError, IndexError):  # the processor refuses one of them: find out which
            answers = [self._answer(item) for item in items]
        return list(zip((number for number, _ in alike), answers, strict=True))

    def _answer(self, item: RenderedPrompt) -> Answer:
        try:
            return self._answers([item])[0]
        except (ValueError, IndexError) as e:
            return DataError(f"{item.id}: {self._options.model} cannot take it: {e}")

    def _answers(self, items: list[RenderedPrompt]) -> list[Answer]:
        """Answers of one batch. Raises ValueError (DataError is one) for items that the model cannot take."""
        encoded = self._encode(items)
        prompt = encoded["input_ids"].clone()  # BLIP changes it
        length, room = prompt.shape[1], self._longest
        if room is not None and length >= room:
            raise DataError(f"a prompt of {length} tokens; the model takes {room}, the answer included")
        most = max(item.max_tokens for item in items)
        if room is not None and length + most > room:
            if len(items) > 1:
                raise DataError("a short prompt would have to end early for a long one beside it")
            most = room - length
        options, torch = self._options, self._torch
        how: dict[str, Any] = {"do_sample": bool(options.temperature), "repetition_penalty": options.repetition_penalty}
        if options.temperature:
            how |= {"temperature": options.temperature, "top_p": options.top_p, "top_k": options.top_k}
        if options.stop:
            how |= {"stop_strings": list(options.stop), "tokenizer": self._tokenizer}
        if items[0].schema is not None:
            how["logits_processor"] = [self._follows(items[0].schema, len(items))]
        try:
            with torch.inference_mode(), torch.random.fork_rng():
                torch.manual_seed(items[0].seed)
                tokens = self._model.generate(**encoded, **how, max_new_tokens=most)
        except (
            RuntimeError,
            TypeError,
            AttributeError,
        ) as e:  # out of memory included; or a model that is asked in another way
            raise EngineError(
                f"engine 'transformers': {options.model} failed on a batch of {len(items)} x {length} tokens: {e}"
            ) from e
        rows = tokens[:, self._begin(tokens, prompt) :].tolist()
        used = encoded["attention_mask"].sum(1).tolist()
        return [self._cut(row, item.max_tokens, count) for row, item, count in zip(rows, items, used, strict=True)]

    def _begin(self, tokens: Any, prompt: Any) -> int:
        """The first column of the answers.

        Most models return the prompt before the answer, BLIP without its last token; models that are given embeddings
        return only the answer; models with an encoder return their decoder's start token before it.

        Args:
            tokens: Output of `generate`, (B, T).
            prompt: Token ids of the prompts, (B, L).
        """
        if self._decodes_apart:
            return 1
        for length in (prompt.shape[1], prompt.shape[1] - 1):
            if tokens.shape[1] >= length > 1 and bool((tokens[:, 1:length] == prompt[:, 1:length]).all()):
                return length
        return 0

    def _encode(self, items: list[RenderedPrompt]) -> Any:
        prompts = [item.prompt for item in items]
        media: dict[str, Any] = {}
        if prompts[0].images:
            media["images"] = [prompt.images for prompt in prompts]
        if prompts[0].frames:
            media["videos"] = [prompt.frames for prompt in prompts]
            told = [
                {"total_num_frames": n, "fps": FPS, "frames_indices": list(range(n))}
                for n in (len(p.frames) for p in prompts)
            ]
            media |= {"do_sample_frames": False, "video_metadata": told}
        texts = [prompt.text for prompt in prompts]
        encoded = self._processor(
            text=texts, **media, padding=True, return_tensors="pt", add_special_tokens=prompts[0].special
        )
        if media and not any(value.is_floating_point() and value.numel() for value in encoded.values()):
            raise unseen(_NAME, self._options.model, items[0].id, video=bool(prompts[0].frames))
        if not media:  # some tokenizers return them, but language models do not take them
            encoded.pop("token_type_ids", None)
        floats = self._model.dtype
        return {
            name: value.to(self._device, floats if value.is_floating_point() else None)
            for name, value in encoded.items()
        }

    def _cut(self, row: list[int], max_tokens: int, prompt_tokens: int) -> Generation:
        """The answer in a row of output, as if its request had been alone in the batch.

        Args:
            row: Token ids after the prompt.
            max_tokens: Most tokens of this answer.
            prompt_tokens: Tokens of this prompt.
        """
        over = self._ends | {self._tokenizer.pad_token_id}  # padding follows a stop text
        end = next((i for i, token in enumerate(row) if token in over), None)
        finish: Literal["stop", "length"] = "length" if end is None or end >= max_tokens else "stop"
        row = row[: max_tokens if finish == "length" else end]
        if self._marks.intersection(row):
            text = self._tokenizer.decode([token for token in row if token not in self._left_out])
        else:
            text = self._tokenizer.decode(row, skip_special_tokens=True)
        first = min((at for at in map(text.find, self._options.stop) if at >= 0), default=None)
        if first is not None:
            text, finish = text[:first], "stop"
        ended = finish == "stop" and first is None
        return Generation(text.strip(), len(row) + ended, prompt_tokens, finish)

    def _follows(self, schema: str, rows: int) -> Any:
        """A logits processor that allows only tokens which can still lead to JSON of a schema.

        Args:
            schema: The JSON schema, as text.
            rows: Size of the batch.

        Raises:
            EngineError: xgrammar is not installed.
            ValueError: The schema cannot be followed.
        """
        with base.needs("transformers (answers by a JSON schema)", "pip install xgrammar"):
            import xgrammar
        info = xgrammar.TokenizerInfo.from_huggingface(self._tokenizer, vocab_size=self._vocabulary)
        try:
            grammar = xgrammar.GrammarCompiler(info).compile_json_schema(schema)
        except RuntimeError as e:
            raise ValueError(f"not a JSON schema that can be followed: {e}") from e
        matchers = [xgrammar.GrammarMatcher(grammar) for _ in range(rows)]
        mask = xgrammar.allocate_token_bitmask(rows, info.vocab_size)
        started = False

        def follow(tokens: Any, scores: Any) -> Any:
            nonlocal started
            for i, matcher in enumerate(matchers):
                if started and not matcher.is_terminated():
                    matcher.accept_token(int(tokens[i, -1]))  # padding after a stop text: the row is done
                if not matcher.is_terminated():
                    matcher.fill_next_token_bitmask(mask, i)
            started = True
            masked = scores.cpu().float()
            xgrammar.apply_token_bitmask_inplace(masked, mask)
            return masked.to(scores)

        return follow
