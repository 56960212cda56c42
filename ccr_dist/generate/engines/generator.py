"""What a generation engine is: requests (pictures and text) in, texts out, continuously; and finding one by name.

Chat templates and pictures are prepared in `chat.py`; what to ask of which row is `generate/jobs/request_stream.py`.
Engines that only translate text have a smaller protocol, in `base.py`. A generation engine also translates, when the
request asks for it.
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
    """One question. `id` is unique in the job and the same in every run of it: a sampled answer's seed depends on it.

    The model sees images and frames before the text.

    Attributes:
        id: The request's name.
        text: The question.
        system: What comes before it.
        images: RGB pictures, in the order in which the model sees them.
        frames: RGB frames of one video, evenly spaced, in order.
        max_tokens: Longest answer, in tokens.
        schema: A JSON schema that the answer has to follow.
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
        text: The answer, without blanks around it.
        tokens: Its length.
        prompt_tokens: The prompt's length, pictures included.
        finish: Why it ended.
    """

    text: str
    tokens: int
    prompt_tokens: int
    finish: Literal["stop", "length"]


Answer = Generation | DataError
Renderer = Callable[[Request], Any]


class GeneratorOptions(base.EngineOptions):
    """Options that every engine with a model has; temperature 0 (greedy) makes all other sampling settings but the
    penalty irrelevant.
    """

    model: str = Field(description="Hugging Face id, local folder, or a server's name for a model; required")
    revision: str | None = Field(
        None, description="branch, tag or commit of a Hugging Face id; for a server: what you know it to serve"
    )
    temperature: float = Field(0, ge=0, description="0: greedy")
    top_p: float = Field(1, gt=0, le=1, description="sample from the likeliest tokens that make up this probability")
    top_k: int = Field(0, ge=0, description="sample from this many likeliest tokens; 0: all")
    repetition_penalty: float = Field(1, gt=0, description="above 1: tokens that already occurred become less likely")
    seed: int = Field(0, description="of sampling, together with each request's id")
    stop: tuple[str, ...] = Field((), description="texts that end an answer; not part of it")
    max_pixels: int = Field(
        1_048_576, gt=0, description="larger pictures and frames are scaled down to this many pixels each"
    )
    video: bool = Field(
        False, description="frames go in as one video, for models that know videos; otherwise as so many pictures"
    )

    chat_template_kwargs: dict[str, Any] = Field(
        {},
        description=(
            'what the chat template is given beside the messages; {"enable_thinking": false} ends the thinking of many'
            " models"
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
        """What determines the tokens, for an identity."""
        names = ["temperature", "repetition_penalty", "stop", "max_pixels", "video"]
        names += ["top_p", "top_k", "seed"] if self.temperature else []
        names += ["chat_template_kwargs"] if self.chat_template_kwargs else []
        return self.model_dump(mode="json", include=set(names))


class Generator(ABC):
    """A model that answers requests; making it loads nothing heavy.

    Work goes in by `start` and comes out by `advance`, in any order, so that an engine with continuous batching never
    drains. All of it happens in one thread; only renderers go elsewhere. `in_flight`: requests at once that suit the
    engine; more may be started. `packages`, `tools`, `local`: as of a `Translator`.
    """

    Options: ClassVar[type[base.EngineOptions]] = GeneratorOptions
    in_flight: int = 64
    packages: ClassVar[tuple[str, ...]] = ()
    tools: ClassVar[tuple[str, ...]] = ()
    local: ClassVar[bool] = True
    # it ends every request by itself after some time: that nothing comes back is no sign that it hangs
    bounded: ClassVar[bool] = False

    @abstractmethod
    def __init__(self, options: Any) -> None: ...

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """What determines the answers: engine, model and revision or digest, dtype, sampling, template. JSON; no hosts,
        no paths.
        """

    def versions(self) -> dict[str, str]:
        """Of libraries that are no part of the identity, for the provenance."""
        return {}

    def load(self) -> None:  # noqa: B027 (not all have something to load)
        """Loads the model; called once before the first `start`. EngineError when it cannot be loaded."""

    def close(self) -> None:  # noqa: B027 (not all hold something)
        """Ends processes and connections; what is in flight is dropped. May be called twice, and without `load`."""

    @abstractmethod
    def renderer(self) -> Renderer:
        """A picklable function from a request to an item for `start`: everything the CPU can do ahead of the engine, in
        other processes.

        Available before `load`. Items can be pickled. The function raises DataError for a request that this engine
        cannot take. If it has a method `load`, that is called once in each process, while the engine loads.
        """

    @abstractmethod
    def start(self, number: int, item: Any) -> None:
        """Takes one rendered item; `number`, unused among those in flight, names it in `advance`."""

    @abstractmethod
    def advance(self) -> list[tuple[int, Answer]]:
        """Lets the engine work until something is done, or a moment; what is done by now, each once, maybe nothing.

        A request that the engine refuses is a DataError in its place. EngineError when the engine is gone or answers
        nonsense.
        """


generators: base.Registry[Generator] = base.Registry("generation engine")


def make_generator(name: str, options: dict[str, Any]) -> Generator:
    """The engine of this name. ConfigError for an unknown engine or option, naming the valid ones."""
    cls = generators.get(name)
    return cls(base.check_options(name, cls.Options, options))


def request_seed(seed: int, request_id: str) -> int:
    """A seed (31 bits) of one request, whatever is beside it in a batch."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{request_id}".encode()).digest()[:4], "big") >> 1
