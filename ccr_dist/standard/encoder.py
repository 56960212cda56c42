"""A retriever as mteb sees a model: its `EncoderProtocol`.

mteb encodes queries and documents one after the other, and asks the model for their similarity. So a method whose score
is not one dot product keeps its own score: rows remember whether they are of texts or of pictures, and `similarity`
hands both to the retriever. Pictures and videos are opened by this project's rule, as in training, not by `datasets`.
"""

from __future__ import annotations

import hashlib
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from datasets import Dataset, Image, Video
from mteb.abstasks.task_metadata import TaskMetadata
from mteb.languages import check_language_code
from mteb.models import ModelMeta
from mteb.models.model_meta import ScoringFunction
from torch.utils.data import DataLoader

from ccr_dist.data.media.pictures import decode_image
from ccr_dist.data.media.text import has_text
from ccr_dist.errors import ConfigError, DataError, NonFiniteError
from ccr_dist.standard.subsets import language_of, written

if TYPE_CHECKING:
    from ccr_dist.retriever.retriever import Retriever

MODALITIES = ("text", "image", "video")
SIDES = {"text": "text", "image": "visual", "video": "visual"}
_REMEMBERED = 1 << 28  # floats of rows of pictures that are kept: 1 GiB
_SCORES_AT_ONCE = 1 << 24
_OPTIONS = {"batch_size", "show_progress_bar"}


class Rows(np.ndarray):
    """(n, width) float32 rows that know what they were made of.

    Attributes:
        side: text, visual, or "" where it is not known.
    """

    side: str = ""

    def __array_finalize__(self, source: Any) -> None:
        self.side = getattr(source, "side", "")


class RetrieverEncoder:
    """A retriever for `mteb.evaluate`.

    Attributes:
        mteb_model_meta: name, revision (the retriever's digest), languages and so on, as mteb keeps them with results.

    Args:
        retriever: what encodes.
    """

    def __init__(self, retriever: Retriever) -> None:
        self.retriever = retriever
        self.mteb_model_meta = model_meta(retriever)
        self._remembered: dict[bytes, np.ndarray] = {}

    def encode(
        self,
        inputs: DataLoader[Any],
        *,
        task_metadata: TaskMetadata,
        hf_split: str,
        hf_subset: str,
        prompt_type: Any = None,
        **kwargs: Any,
    ) -> Rows:
        """Encode texts, pictures or videos.

        Args:
            inputs: batches with exactly one of the keys text, image and video.
            task_metadata: of the task; its language of `hf_subset` is the language of the texts.
            hf_split: for messages.
            hf_subset: of the task.
            prompt_type: not used: retrievers take no instructions.
            **kwargs: `batch_size`; `show_progress_bar` is ignored.

        Returns:
            (n, width) float32.

        Raises:
            ConfigError: inputs of another kind, of several kinds at once, in a language that the retriever cannot
                encode, or another option.
            DataError: a picture or video that cannot be opened.
        """
        if unknown := sorted(kwargs.keys() - _OPTIONS):
            raise ConfigError(f"{task_metadata.name}: a retriever has no option {', '.join(unknown)}")
        batch = int(kwargs.get("batch_size", 32))
        modality, values, where = "", [], f"{task_metadata.name}, split {hf_split}, subset {hf_subset}"
        rows: list[np.ndarray] = []
        for number, found in enumerate(_undecoded(inputs)):
            modality = _modality(found, where)
            if modality == "text":
                values += found["text"]  # all at once: a retriever sorts texts by length
            else:
                names = found.get("id") or [f"{number * batch + i}" for i in range(len(found[modality]))]
                rows.append(self._visual(modality, found[modality], [f"{where}, item {name}" for name in names]))
        if modality == "text":
            rows.append(self._texts(values, language_of(task_metadata, hf_subset), batch, where))
        if not rows:
            raise DataError(f"{where}: there is nothing to encode")
        made = np.concatenate(rows).astype(np.float32, copy=False).view(Rows)
        made.side = SIDES[modality]
        return made

    def similarity(self, embeddings1: Any, embeddings2: Any) -> np.ndarray:
        """Scores of all pairs, by the retriever's own score.

        Args:
            embeddings1: (n, width) rows that `encode` returned, or a part of them.
            embeddings2: (m, width) rows.

        Returns:
            (n, m) float32.

        Raises:
            ConfigError: the retriever's score is not a dot product, and these are not the rows of texts on one side and
                of pictures or videos on the other.
        """
        sides = (getattr(embeddings1, "side", ""), getattr(embeddings2, "side", ""))
        first, second = _plain(embeddings1), _plain(embeddings2)
        if sides == ("text", "visual"):
            return self._scores(first, second)
        if sides == ("visual", "text"):
            return self._scores(second, first).T
        self._require_cosine()
        return first @ second.T

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> np.ndarray:
        """(n,) scores of row i with row i. Raises ConfigError where the retriever's score is not a dot product."""
        self._require_cosine()
        return np.einsum("nd,nd->n", _plain(embeddings1), _plain(embeddings2))

    def _scores(self, text: np.ndarray, visual: np.ndarray) -> np.ndarray:
        """The retriever's scores, some texts at a time: it computes them in float64."""
        step = max(1, _SCORES_AT_ONCE // max(1, len(visual)))
        blocks = [self.retriever.similarity(text[at : at + step], visual) for at in range(0, len(text), step)]
        scores = np.concatenate(blocks)
        if np.isnan(scores).any():
            raise NonFiniteError(f"{self.retriever.name}: a score is NaN; the method diverged")
        return scores

    def _require_cosine(self) -> None:
        if not self.retriever.cosine:
            raise ConfigError(
                f"{self.retriever.name}: its method scores a text with a picture or video by several parts, which are"
                " not compared with anything else; only mteb's retrieval tasks between texts and pictures or videos"
                " can use it"
            )

    def _texts(self, texts: Sequence[str], lang: str, batch: int, where: str) -> np.ndarray:
        """(n, text_width). mteb asks for a row of every text: a blank one, which says nothing, has a row of zeros."""
        said = [at for at, text in enumerate(texts) if has_text(text)]
        if len(said) < len(texts):
            print(f"{where}: {len(texts) - len(said)} blank texts score 0 with everything", file=sys.stderr)
        rows = np.zeros((len(texts), self.retriever.text_width), np.float32)
        rows[said] = self.retriever.encode_text([texts[at] for at in said], lang=lang, batch=batch)
        return rows

    def _visual(self, modality: str, values: Sequence[Any], names: Sequence[str]) -> np.ndarray:
        """(n, visual_width). Equal files are encoded once: the subsets of a task often share their pictures."""
        encode = self._images if modality == "image" else self._videos
        files = [_bytes(value, name) for value, name in zip(values, names, strict=True)]
        if any(data is None for data in files):  # pictures that are open
            return encode(values, names)
        digests = [hashlib.sha256(data).digest() for data in files if data is not None]
        new = {digest: at for at, digest in enumerate(digests) if digest not in self._remembered}
        made: dict[bytes, np.ndarray] = {}
        if new:
            rows = encode([files[at] for at in new.values()], [names[at] for at in new.values()])
            made = dict(zip(new, rows, strict=True))
        found = np.stack([made[d] if d in made else self._remembered[d] for d in digests])
        if (len(self._remembered) + len(made)) * self.retriever.visual_width <= _REMEMBERED:
            self._remembered |= made
        return found

    def _images(self, values: Sequence[Any], names: Sequence[str]) -> np.ndarray:
        opened = [
            decode_image(value, name) if isinstance(value, bytes) else value
            for value, name in zip(values, names, strict=True)
        ]
        return self.retriever.encode_images(opened, batch=len(opened))

    def _videos(self, values: Sequence[Any], names: Sequence[str]) -> np.ndarray:
        for value, name in zip(values, names, strict=True):
            if not isinstance(value, bytes):
                raise ConfigError(f"{name}: a video is expected as a file, not as {type(value).__name__}")
        with tempfile.TemporaryDirectory(prefix="ccr-videos-") as folder:
            paths = [Path(folder) / f"{number:06d}" for number in range(len(values))]
            for path, value in zip(paths, values, strict=True):
                path.write_bytes(value)
            return self.retriever.encode_videos(paths)


def model_meta(retriever: Retriever) -> ModelMeta:
    """What mteb keeps of a model with its results."""
    spoken = [code for lang in retriever.languages if _is_known(code := written(lang))]
    return ModelMeta(
        loader=None,
        name=retriever.name if "/" in retriever.name else f"ccr-dist/{retriever.name}",
        revision=retriever.digest,
        release_date=None,
        languages=spoken,
        n_parameters=sum(parameter.numel() for parameter in retriever.method.named_parameters().values()),
        memory_usage_mb=None,
        max_tokens=None,
        embed_dim=retriever.text_width,
        license=None,
        open_weights=None,
        public_training_code=None,
        public_training_data=None,
        framework=["PyTorch"],
        similarity_fn_name=ScoringFunction.COSINE if retriever.cosine else ScoringFunction.CUSTOM,
        use_instructions=False,
        training_datasets=None,
        modalities=list(MODALITIES),
    )


def _is_known(code: str) -> bool:
    try:
        check_language_code(code)
    except ValueError:
        return False
    return True


def _undecoded(inputs: DataLoader[Any]) -> DataLoader[Any]:
    """The same batches, with the files of pictures and videos instead of what `datasets` makes of them."""
    dataset: Any = inputs.dataset
    if not isinstance(dataset, Dataset):
        return inputs
    for name, feature in dataset.features.items():
        if isinstance(feature, Image | Video):
            dataset = dataset.cast_column(name, type(feature)(decode=False))
    return DataLoader(
        dataset, batch_size=inputs.batch_size, collate_fn=inputs.collate_fn, num_workers=inputs.num_workers
    )


def _modality(batch: dict[str, Any], where: str) -> str:
    found = [name for name in (*MODALITIES, "audio") if name in batch]
    if len(found) != 1 or found[0] not in MODALITIES:
        raise ConfigError(
            f"{where}: the inputs are {' and '.join(found) or ', '.join(batch)}; a retriever encodes a text, a picture"
            " or a video, each by itself"
        )
    return found[0]


def _bytes(value: Any, name: str) -> bytes | None:
    """The file that an undecoded picture or video is; None for one that is open."""
    if not isinstance(value, dict) or not value.keys() >= {"bytes", "path"}:
        if value is None:
            raise DataError(f"{name}: it is empty")
        return None
    if value["bytes"] is not None:
        return bytes(value["bytes"])
    return Path(value["path"]).read_bytes()


def _plain(rows: Any) -> np.ndarray:
    """An array without a side, of a torch tensor, too."""
    return np.atleast_2d(np.asarray(rows, dtype=np.float32)).view(np.ndarray)
