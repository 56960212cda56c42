"""The protocol of generation engines: a stream of requests (pictures and text) in, answers out; and their registry.

`chat.py` prepares chat templates and pictures; `generate/jobs/request_stream.py` decides what to ask about which row.
Engines that only translate have a smaller protocol (`base.py`); generation engines translate if a request asks for it.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, field_validator

from ccr_dist.errors import DataError
from ccr_dist.generate.engines import base

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class Request:
    """One question. The model sees images and frames before the text.

    Attributes:
        id: Unique in the job, and the same in every run of it, since the seed of sampling depends on it.
        text: The question.
        system: The system message, or None.
        images: RGB pictures in the order in which the model sees them.
        frames: RGB frames of one video, evenly spaced, in order.
        max_tokens: Most tokens of the answer.
        schema: A JSON schema that the answer must follow, or None.
    """

    id: str
    text: str
    system: str | None = None
    images: tuple[Image, ...] = ()
    frames: tuple[Image, ...] = ()
    max_tokens: int = 256
    schema: dict[str, Any] | None = None


@dataclass(frozen=True)
class Generation:
    """One answer.

    Attributes:
        text: The answer, stripped.
        tokens: Its length in tokens.
        prompt_tokens: Length of the prompt in tokens, pictures included.
        finish: "stop", or "length" if it ended at the token limit.
    """

    text: str
    tokens: int
    prompt_tokens: int
    finish: Literal["stop", "length"]


Answer = Generation | DataError
Renderer = Callable[[Request], Any]


class GeneratorOptions(base.EngineOptions):
    """Options of all engines that run or call a model.

    With temperature 0 (greedy), `repetition_penalty` is the only other sampling option that matters.
    """

    model: str = Field(description="Hugging Face id, local folder, or a server's name for a model; required")
    revision: str | None = Field(
        None, description="branch, tag or commit of a Hugging Face id; for a server: what it serves, as far as you know"
    )
    temperature: float = Field(0, ge=0, description="0: greedy")
    top_p: float = Field(1, gt=0, le=1, description="sample from the most likely tokens, up to this probability")
    top_k: int = Field(0, ge=0, description="sample from this many most likely tokens; 0: all")
    repetition_penalty: float = Field(1, gt=0, description="above 1: tokens that already occurred become less likely")
    seed: int = Field(0, description="of sampling, together with each request's id")
    stop: tuple[str, ...] = Field((), description="texts that end an answer and are not part of it")
    max_pixels: int = Field(
        1_048_576, gt=0, description="larger pictures and frames are scaled down to this many pixels each"
    )
    video: bool = Field(
        False, description="frames are given as one video, to models that take videos; otherwise as pictures"
    )

    chat_template_kwargs: dict[str, Any] = Field(
        {},
        description=(
            'further arguments of the chat template; {"enable_thinking": false} turns off the thinking of many models'
        ),
    )

    @field_validator("chat_template_kwargs")
    @classmethod
    def _own(cls, told: dict[str, Any]) -> dict[str, Any]:
        if (
            taken := {"conversation", "messages", "chat_template", "add_generation_prompt", "tokenize", "return_dict"}
            & told.keys()
        ):
            raise ValueError(f"{', '.join(sorted(taken))}: not for you to set")
        return told

    def sampling(self) -> dict[str, Any]:
        """The options that determine the answers, for `identity`."""
        names = ["temperature", "repetition_penalty", "stop", "max_pixels", "video"]
        names += ["top_p", "top_k", "seed"] if self.temperature else []
        names += ["chat_template_kwargs"] if self.chat_template_kwargs else []
        return self.model_dump(mode="json", include=set(names))


class Generator(ABC):
    """A model that answers requests. The constructor loads nothing heavy.

    `start` takes requests and `advance` returns answers in any order, so that an engine with continuous batching never
    runs empty. All calls come from one thread; only renderers run elsewhere.

    Args:
        options: The engine's options.

    Attributes:
        in_flight: Number of requests in flight that suits the engine; more may be started.
        packages: As for `Translator`.
        tools: As for `Translator`.
        local: As for `Translator`.
        bounded: Whether it ends every request by itself after some time, so that long silence does not mean a hang.
    """

    Options: ClassVar[type[base.EngineOptions]] = GeneratorOptions
    in_flight: int = 64
    packages: ClassVar[tuple[str, ...]] = ()
    tools: ClassVar[tuple[str, ...]] = ()
    local: ClassVar[bool] = True
    bounded: ClassVar[bool] = False

    @abstractmethod
    def __init__(self, options: Any) -> None: ...

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """What determines the answers, as JSON without hosts and paths: engine, model with revision or digest, dtype,
        sampling, template.
        """

    def versions(self) -> dict[str, str]:
        """Versions of libraries that are not part of the identity, for the provenance."""
        return {}

    def load(self) -> None:  # noqa: B027 (not all have something to load)
        """Load the model; called once before the first `start`. Raises EngineError if that fails."""

    def close(self) -> None:  # noqa: B027 (not all hold something)
        """End processes and connections; drops requests in flight. May be called twice, and without `load`."""

    @abstractmethod
    def renderer(self) -> Renderer:
        """A picklable function that turns a request into a picklable item for `start`.

        It does everything that the CPU can do ahead of the engine, in other processes, and raises DataError for a
        request that this engine cannot take. It is available before `load`. If it has a method `load`, that is called
        once in each process, while the engine loads.
        """

    @abstractmethod
    def start(self, number: int, item: Any) -> None:
        """Take one rendered request.

        Args:
            number: Names the request in `advance`; no request in flight has it.
            item: What the renderer made.

        Raises:
            EngineError: The engine failed.
        """

    @abstractmethod
    def advance(self) -> list[tuple[int, Answer]]:
        """Let the engine work until an answer is complete, or for a moment.

        Returns:
            (number, answer) of the requests completed since the last call, possibly none; a DataError in place of the
            answer if the engine refuses the request.

        Raises:
            EngineError: The engine failed.
        """


generators: base.Registry[Generator] = base.Registry("generation engine")


def make_generator(name: str, options: dict[str, Any]) -> Generator:
    """Construct a generation engine.

    Args:
        name: Name of the engine.
        options: The engine's options, as text or typed.

    Raises:
        ConfigError: The engine or an option is unknown or wrong; names the valid ones.
    """
    cls = generators.get(name)
    return cls(base.check_options(name, cls.Options, options))


def request_seed(seed: int, request_id: str) -> int:
    """The seed of one request (31 bits), independent of its batch."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{request_id}".encode()).digest()[:4], "big") >> 1
