"""Requests as models see them: pictures scaled down, and the prompt that a model's chat template makes.

For engines that run models in Hugging Face's format. A server has its own template; `openai_messages.py` needs only the
pictures.
"""

from __future__ import annotations

import functools
import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import Field

from ccr_dist.errors import ConfigError, DataError, EngineError, let_pass
from ccr_dist.generate.engines import base
from ccr_dist.generate.engines.generator import GeneratorOptions, Request

if TYPE_CHECKING:
    from PIL.Image import Image

FPS = 2.0  # frame rate that models are told; frames are evenly spaced, whatever the video's length
_FIELDS = ("system", "media", "text")


class ModelOptions(GeneratorOptions):
    """Options of engines that run a model themselves."""

    template: str | None = Field(
        None, description="for models without a chat template: text with {system}, {media} and {text}"
    )
    trust_remote_code: bool = Field(False, description="run code that comes with the model")

    def sampling(self) -> dict[str, Any]:
        return super().sampling() | {"template": self.template}


@dataclass(frozen=True)
class ChatPrompt:
    """Input of a model's processor.

    Attributes:
        text: The prompt, with placeholders for media.
        images: RGB pictures in order.
        frames: RGB frames of one video in order.
        special: Whether the tokenizer must add its start token.
    """

    text: str
    images: list[Image]
    frames: list[Image]
    special: bool


@dataclass(frozen=True)
class Chat:
    """Turns requests into prompts. Can be pickled; loads the model's processor on first use.

    Attributes:
        engine: Name of the engine, for messages.
        options: Its options.

    Raises:
        ConfigError: `template` has other fields than {system}, {media} and {text}.
    """

    engine: str
    options: ModelOptions

    def __post_init__(self) -> None:
        if self.options.template is not None:
            try:
                self.options.template.format(**dict.fromkeys(_FIELDS, ""))
            except (KeyError, IndexError, ValueError) as e:
                raise ConfigError(
                    f"engine {self.engine!r}: template: {e} is no field; there are {{system}}, {{media}} and {{text}};"
                    " braces are doubled"
                ) from e

    def __call__(self, request: Request) -> ChatPrompt:
        """The prompt of a request.

        Raises:
            ConfigError: The chat template does not know one of `chat_template_kwargs`.
            EngineError: The model has no chat template, or its processor cannot be loaded.
            DataError: The template refuses the request.
        """
        images, frames = (
            shrunk(request.images, self.options.max_pixels),
            shrunk(request.frames, self.options.max_pixels),
        )
        if not self.options.video:
            images, frames = images + frames, []
        if self.options.template is not None:
            return ChatPrompt(self._filled(request, len(images), len(frames)), images, frames, special=True)
        processor = load_processor(
            self.engine, self.options.model, self.options.revision, self.options.trust_remote_code
        )
        content: Any = [{"type": "image"} for _ in images]
        if frames:
            content.append({"type": "video"})
        content.append({"type": "text", "text": request.text})
        if not hasattr(processor, "tokenizer"):  # only a tokenizer: templates of text models take strings
            if images or frames:
                raise DataError(f"{request.id}: pictures for {self.options.model}, which takes only text")
            content = request.text
        system = [
            {
                "role": "system",
                "content": request.system if isinstance(content, str) else [{"type": "text", "text": request.system}],
            }
        ]
        messages = [*(system if request.system else []), {"role": "user", "content": content}]
        from jinja2 import TemplateError

        told = self.options.chat_template_kwargs
        if unknown := [name for name in told if name not in _template(processor)]:
            raise ConfigError(
                f"engine {self.engine!r}: chat_template_kwargs: the chat template of {self.options.model} has no"
                f" {', '.join(unknown)}"
            )
        try:
            text = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False, **told)
        except TemplateError as e:
            raise DataError(f"{request.id}: the chat template of {self.options.model} refuses it: {e}") from e
        except ValueError as e:
            raise EngineError(
                f"engine {self.engine!r}: {self.options.model} has no chat template; give one with the option template:"
                f" {str(e)[:200]}"
            ) from e
        return ChatPrompt(text, images, frames, special=False)

    def _filled(self, request: Request, images: int, frames: int) -> str:
        assert self.options.template is not None
        media = ""
        if "{media}" in self.options.template and (images or frames):
            processor = load_processor(
                self.engine, self.options.model, self.options.revision, self.options.trust_remote_code
            )
            try:
                media = processor.image_token * images + (processor.video_token if frames else "")
            except AttributeError as e:
                raise EngineError(
                    f"engine {self.engine!r}: the processor of {self.options.model} does not say how it marks media"
                    f" ({e}); write the model's own mark into the template in the place of {{media}}"
                ) from e
        return self.options.template.format(system=request.system or "", media=media, text=request.text)


def _template(processor: Any) -> str:
    """The text of all chat templates of a processor and its tokenizer."""
    found = [getattr(one, "chat_template", None) for one in (processor, getattr(processor, "tokenizer", None))]
    return "\n".join(str(template) for template in found if template)


_loading = threading.Lock()


def load_processor(engine: str, model: str, revision: str | None, trust_remote_code: bool) -> Any:
    """Load the model's processor, or its tokenizer if it takes only text; once per process.

    Args:
        engine: Name of the engine, for messages.
        model: Hugging Face id or local folder.
        revision: Branch, tag or commit of an id; None: main.
        trust_remote_code: Whether to run code that comes with the model.

    Raises:
        EngineError: It cannot be loaded.
    """
    with _loading:
        return _load_processor(engine, model, revision, trust_remote_code)


@functools.lru_cache(2)
def _load_processor(engine: str, model: str, revision: str | None, trust_remote_code: bool) -> Any:
    with base.needs(engine, "pip install 'ccr-dist[train]'"):
        from transformers import AutoProcessor
    try:
        return AutoProcessor.from_pretrained(model, revision=revision or "main", trust_remote_code=trust_remote_code)
    except (OSError, ValueError, ImportError) as e:  # some processors need another package (SmolVLM: num2words)
        let_pass(e, model)
        raise EngineError(f"engine {engine!r}: cannot load the processor of {model!r}: {str(e).strip()[:500]}") from e


def unseen(engine: str, model: str, request: str, *, video: bool) -> EngineError:
    """The error for a model that does not see its media: its answers would be the same for all rows.

    Args:
        engine: Name of the engine.
        model: Name of the model.
        request: Id of the request.
        video: Whether the media are frames of a video.
    """
    return EngineError(
        f"engine {engine!r}: {model} sees no {'videos' if video else 'pictures'}: nothing of {request} is in what is"
        " made for it, and all answers would be alike"
        + ("; without video=true frames go in as pictures" if video else "")
    )


def shrunk(images: Sequence[Image], max_pixels: int) -> list[Image]:
    """Convert pictures to RGB and scale down those with more than `max_pixels` pixels; proportions are kept."""
    return [_shrunk(image, max_pixels) for image in images]


def _shrunk(image: Image, max_pixels: int) -> Image:
    if image.width * image.height > max_pixels:
        factor = math.sqrt(max_pixels / (image.width * image.height))
        size = (max(1, int(image.width * factor)), max(1, int(image.height * factor)))
        image = image.resize(size, resample=3, reducing_gap=3.0)  # bicubic, as in vision models' own processors
    return image if image.mode == "RGB" else image.convert("RGB")
