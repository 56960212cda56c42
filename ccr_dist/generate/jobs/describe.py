"""Describes pictures or videos with a multimodal language model, in one or several views."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

from ccr_dist.data.media.decode import decode_image
from ccr_dist.data.media.pictures import VERSION
from ccr_dist.data.media.text import has_text, texts_of
from ccr_dist.data.media.video import decode_video
from ccr_dist.data.table.dataset import Dataset
from ccr_dist.errors import ConfigError, DataError
from ccr_dist.generate.engines.generator import Answer, Generator, Request
from ccr_dist.generate.jobs.prompts import LIST_SCHEMA, Prompt, load_prompt, plan_of
from ccr_dist.generate.jobs.request_stream import Asked, Asker, Generate, spare_cores
from ccr_dist.generate.processor import RowOutcome
from ccr_dist.generate.text import filters
from ccr_dist.generate.text.filters import kept_of, tally

FIELDS = ("media", "captions")


def default_column(model: str) -> str:
    """The column for a model: `description.qwen2.5-vl-7b-instruct` for Qwen/Qwen2.5-VL-7B-Instruct."""
    name = model.rstrip("/").rsplit("/", 1)[-1].lower()
    return f"description.{re.sub('[^a-z0-9._-]+', '-', name).strip('.-_')}"


@dataclass(frozen=True)
class Look:
    """Makes the requests of a row; None for a row without picture, or without caption if the prompt needs one.

    Attributes:
        prompt: The prompt.
        column: Column of pictures or videos.
        video: Whether it has videos.
        frames: Frames of a video.
        captions: Column of texts for the prompt's {captions}, or None.
    """

    prompt: Prompt
    column: str
    video: bool
    frames: int
    captions: str | None

    def __call__(self, key: str, values: dict[str, Any]) -> Asked | None:
        media = values[self.column]
        captions = list(filter(has_text, texts_of(values[self.captions]))) if self.captions else []
        if media is None or (self.captions and not captions):
            return None
        seen: dict[str, Any]
        if self.video:
            seen = {"frames": tuple(decode_video(media, key, frames=self.frames))}
        else:
            seen = {"images": (decode_image(media, key),)}
        fields = {
            "media": "video" if self.video else "image",
            "captions": "\n".join(f"- {caption}" for caption in captions),
        }
        requests = []
        for name, view in self.prompt.views.items():
            system, text = self.prompt.fill(name, fields)
            schema = LIST_SCHEMA if view.list else None
            requests.append(Request(f"{key}/{name}", text, system, **seen, max_tokens=view.max_tokens, schema=schema))
        return Asked(tuple(requests))


class Describe(Generate):
    """Turns a picture or video into {"views": {name: text}, "tokens": {name: n}, "finish": {name: why it ended}}.

    An answer that a filter drops is not in "views"; "finish" has the reason, a key of `filters.DROPPED`. Counters: the
    reasons of dropped answers, `cut` (answers truncated to whole sentences), and what was removed around answers (keys
    of `answer.REMOVED`).

    Args:
        engine: A generation engine.
        prompt: Name of a shipped prompt, or path of a file.
        column: Column of pictures or videos.
        frames: Frames of a video.
        captions: Column of texts for the prompt's {captions}, or None.

    Raises:
        ConfigError: The prompt is wrong, or does not fit `captions`.
    """

    kind = "views"

    def __init__(
        self, engine: Generator, prompt: str, column: str = "image", *, frames: int = 8, captions: str | None = None
    ) -> None:
        self.prompt = load_prompt(prompt, FIELDS)
        if self.prompt.uses("captions") != (captions is not None):
            raise ConfigError(
                f"prompt {prompt!r} uses {{captions}}: say which column they are, with --captions COLUMN"
                if captions is None
                else f"--captions {captions}: the prompt {prompt!r} has no field {{captions}}"
            )
        super().__init__(engine, len(self.prompt.views))
        self.workers = spare_cores()
        self.inputs = (column,) if captions is None else (column, captions)
        self._frames, self._video = frames, column == "video"

    def check(self, dataset: Dataset) -> None:
        media = dataset.column(self.inputs[0])
        media.require_kind(("image", "video"), "describe")
        self._video = media.kind == "video"
        for name in self.inputs[1:]:
            dataset.column(name).require_kind(("texts", "views"), "--captions")

    def plan(self) -> dict[str, Any]:
        frames = {"frames": self._frames} if self._video else {}
        rules = {"prompt": plan_of(self.prompt), "pictures": VERSION, "filters": filters.VERSION}
        return {"processor": "describe", "engine": self.engine.identity(), **rules, **frames}

    def asker(self) -> Asker:
        return Look(
            self.prompt, self.inputs[0], self._video, self._frames, self.inputs[1] if len(self.inputs) > 1 else None
        )

    def outcome(self, about: Any, answers: list[Answer]) -> RowOutcome:
        views: dict[str, str] = {}
        finish: dict[str, str] = {}
        tokens: dict[str, int] = {}
        counts: Counter[str] = Counter()
        for (name, view), answer in zip(self.prompt.views.items(), answers, strict=True):
            if isinstance(answer, DataError):
                finish[name], tokens[name] = "failed", 0
                counts["failed"] += 1
                continue
            kept, how, removed = kept_of(
                answer.text, answer.finish, self.prompt.filters, max_words=view.max_words, listed=view.list
            )
            finish[name], tokens[name] = how, answer.tokens
            if kept is not None:
                views[name] = kept
            counts += tally(removed, kept, how)
        return RowOutcome({"views": views, "tokens": tokens, "finish": finish}, counts=dict(counts))
