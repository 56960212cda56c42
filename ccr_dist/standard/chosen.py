"""Which tasks a command asks for, and whether a retriever can be measured on them: found before anything is loaded."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import mteb
from mteb.abstasks import AbsTask, AbsTaskRetrieval
from mteb.abstasks.aggregated_task import AbsTaskAggregate
from mteb.types import PromptType
from PIL import Image

from ccr_dist.errors import ConfigError
from ccr_dist.generate.text import languages
from ccr_dist.standard.encoder import MODALITIES, SIDES
from ccr_dist.standard.own_tasks import DIRECTIONS, own_task, task_names
from ccr_dist.standard.subsets import language_of

if TYPE_CHECKING:
    from ccr_dist.retriever.retriever import Retriever

# Types of tasks that compare all queries with all documents. Others (reranking, questions with a choice of answers) cut
# rows to pieces, of which it is no longer known what they are rows of.
SEARCHES = ("Any2AnyRetrieval", "Any2AnyMultilingualRetrieval", "DocumentUnderstanding")


def chosen(words: str, langs: str | None = None) -> list[AbsTask]:
    """The tasks of `--mteb`.

    Args:
        words: names with commas between them: mteb's own, or NAME=FOLDER over a dataset (`own_tasks`).
        langs: languages with commas between them; of tasks with a subset a language, the other subsets are left out.

    Raises:
        ConfigError: an unknown name (the nearest ones are listed), or a task that has none of the languages.
        DataError: a folder that is not a suitable dataset.
    """
    names = list(dict.fromkeys(word.strip() for word in words.split(",") if word.strip()))
    if not names:
        raise ConfigError("--mteb: expected names of tasks, such as XM3600T2IRetrieval,WITT2IRetrieval")
    tasks = [task for name in names for task in _tasks(name)]
    if langs is not None:
        wanted = [word.strip() for word in langs.split(",") if word.strip()]
        for task in tasks:
            task.hf_subsets = _of_languages(task, wanted)
    return tasks


def require_usable(retriever: Retriever, tasks: Sequence[AbsTask]) -> None:
    """Refuse tasks that the retriever cannot do in all of their languages.

    Raises:
        ConfigError: naming the task, what is wrong and which `--langs` would work.
    """
    for task in tasks:
        _require_pairs(retriever, task)
        _require_pictures(retriever, task)
        if "text" in task.metadata.modalities:
            _require_languages(retriever, task)


def _tasks(word: str) -> list[AbsTask]:
    """A task; or those that a task of mteb stands for."""
    task = _task(word)
    return list(task.metadata.tasks) if isinstance(task, AbsTaskAggregate) else [task]


def _task(word: str) -> AbsTask:
    name, equals, folder = word.partition("=")
    if equals:
        return own_task(name.strip(), folder.strip())
    own = [*DIRECTIONS, *task_names()]
    if name in own:
        raise ConfigError(
            f"--mteb {name}: this task reads a dataset of yours: {name}=FOLDER (`ccr-dist shards recipes` lists what"
            " makes one)"
        )
    try:
        return mteb.get_task(name)
    except KeyError:
        known = [*_names_of_mteb(), *own]
        by_case = {each.lower(): each for each in reversed(known)}
        near = [by_case[each] for each in difflib.get_close_matches(name.lower(), by_case, n=3, cutoff=0.5)]
        hint = f"did you mean {', '.join(near)}?" if near else "https://docs.mteb.org lists them"
        raise ConfigError(f"--mteb {name}: mteb {mteb.__version__} has no task of this name; {hint}") from None


def _names_of_mteb() -> list[str]:
    from mteb.get_tasks import TASK_LIST

    return [task.metadata.name for task in TASK_LIST]


def _of_languages(task: AbsTask, wanted: Sequence[str]) -> list[str]:
    def kept(subset: str) -> bool:
        try:
            spoken = language_of(task.metadata, subset)
        except ConfigError:  # of several languages
            return False
        return any(languages.same(spoken, lang) for lang in wanted)

    found = [subset for subset in task.hf_subsets if kept(subset)]
    if not found:
        raise ConfigError(
            f"--langs {','.join(wanted)}: {task.metadata.name} has none of them; its subsets are"
            f" {', '.join(task.hf_subsets)}"
        )
    return found


def _require_pairs(retriever: Retriever, task: AbsTask) -> None:
    about = task.metadata
    if foreign := [each for each in about.modalities if each not in MODALITIES]:
        raise ConfigError(f"{about.name}: it needs {' and '.join(foreign)}, which a retriever does not encode")
    if not retriever.cosine and about.type not in SEARCHES:
        raise ConfigError(
            f"{about.name} ({about.type}): the method of {retriever.name} scores by several parts; it can only be"
            " measured on retrieval between texts and pictures or videos"
        )
    if not isinstance(task, AbsTaskRetrieval):
        return
    asked, found = (about.get_modalities(side) for side in (PromptType.query, PromptType.document))
    if len(asked) != 1 or len(found) != 1:
        raise ConfigError(
            f"{about.name}: it finds {' with '.join(found)} by {' with '.join(asked)}; a retriever encodes each by"
            " itself"
        )
    if not retriever.cosine and {SIDES[asked[0]], SIDES[found[0]]} != {"text", "visual"}:
        raise ConfigError(
            f"{about.name}: it finds {found[0]} by {asked[0]}; the method of {retriever.name} scores by several parts,"
            " which are only defined between a text and a picture or video"
        )


def _require_pictures(retriever: Retriever, task: AbsTask) -> None:
    """A blank picture, or video of two frames, is encoded: some models read cached features alone."""
    blank, modalities = Image.new("RGB", (64, 64)), task.metadata.modalities
    try:
        if "image" in modalities:
            retriever.encode_images([blank])
        if "video" in modalities:
            retriever.encode_frames([blank, blank])
    except ConfigError as error:
        raise ConfigError(
            f"{task.metadata.name}: {retriever.name} cannot encode its pictures or videos: {error}"
        ) from error


def _require_languages(retriever: Retriever, task: AbsTask) -> None:
    """One short text a language is encoded: the retriever itself knows best what it can do."""
    wrong: dict[str, Any] = {}
    done = []
    for subset in task.hf_subsets:
        lang = language_of(task.metadata, subset)
        try:
            with warnings.catch_warnings():  # of languages that were not trained; it comes again when texts are encoded
                warnings.simplefilter("ignore")
                retriever.encode_text(["a"], lang=lang)
            done.append(lang)
        except ConfigError as error:
            wrong[lang] = error
    if wrong:
        instead = f"--langs {','.join(done)} measures the others" if done else "choose another task"
        raise ConfigError(
            f"{task.metadata.name}: {retriever.name} cannot encode {', '.join(wrong)} ({next(iter(wrong.values()))});"
            f" {instead}"
        )
