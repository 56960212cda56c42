"""Tasks: which ones a command means, those over datasets of one's own, and mteb's own classes over local data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("mteb")

import mteb
from datasets import Dataset, Features, Image, Value
from datasets import Sequence as ListOf
from mteb.abstasks.zeroshot_classification import AbsTaskZeroShotClassification
from mteb.tasks import XM3600I2TRetrieval, XM3600T2IRetrieval

from ccr_dist.errors import ConfigError, DataError, StorageError
from ccr_dist.retriever.retriever import Retriever
from ccr_dist.standard.chosen import chosen, require_usable
from ccr_dist.standard.command import measure
from ccr_dist.standard.encoder import RetrieverEncoder
from ccr_dist.standard.own_tasks import own_task, task_names
from ccr_dist.standard.published import CORPORA
from tests import encoders, generation, retrievers, toy

ZH = ["一个红点", "一个蓝点", "一个绿点"]

pytestmark = pytest.mark.long  # mteb and its libraries take seconds to import


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Retriever:
    return retrievers.clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def hybrid(tmp_path_factory: pytest.TempPathFactory) -> Retriever:
    return retrievers.hybrid(tmp_path_factory.mktemp("hybrid"))


def xtd10(root: Path, **changes: Any) -> Path:
    """A dataset as the recipe makes it, of three pictures."""
    columns: dict[str, Any] = {"image": [toy.picture(i) for i in range(3)]}
    columns |= {f"caption.{lang}": [[f"{lang} {i}"] for i in range(3)] for lang in CORPORA["XTD10"].languages}
    retrievers.dataset(root, columns | changes, name="xtd10")
    return root


# Names.


def test_names_are_those_of_mteb_and_ours() -> None:
    tasks = chosen("XM3600T2IRetrieval, XFlickr30kCoT2IRetrieval,WITT2IRetrieval,WITT2IRetrieval")
    assert [task.metadata.name for task in tasks] == [
        "XM3600T2IRetrieval", "XFlickr30kCoT2IRetrieval", "WITT2IRetrieval",
    ]  # fmt: skip
    assert task_names() == [
        "Multi30kTask2T2IRetrieval", "Multi30kTask2I2TRetrieval", "XTD10T2IRetrieval", "XTD10I2TRetrieval",
        "VATEXZhT2VRetrieval", "VATEXZhV2TRetrieval", "MSRVTTCNT2VRetrieval", "MSRVTTCNV2TRetrieval",
    ]  # fmt: skip
    for name in task_names():  # else a name would mean two tasks
        with pytest.raises(KeyError):
            mteb.get_task(name)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("XM3600", "did you mean .*XM3600[TI]2[TI]Retrieval"),
        ("xm3600t2iretrieval", "did you mean XM3600T2IRetrieval"),
        ("XTD10Retrieval", "did you mean XTD10"),
        ("WITT2IRetrieval,qqqqqqqqqq", "qqqqqqqqqq: .* has no task of this name; https://"),
        ("XTD10T2IRetrieval", "XTD10T2IRetrieval=FOLDER"),
        (" , ", "expected names of tasks"),
        ("WITT2IRetrieval=data", "expected one of T2V, V2T, Multi30kTask2T2IRetrieval"),
    ],
)
def test_unknown_names_are_refused_with_near_ones(words: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        chosen(words)


def test_a_name_that_stands_for_several_tasks_means_them() -> None:
    names = [task.metadata.name for task in chosen("VisualSTS17Multilingual")]
    assert names == ["STS17MultilingualVisualSTS"]


def test_languages_are_a_choice_of_subsets() -> None:
    [task, other] = chosen("XM3600T2IRetrieval,WITT2IRetrieval", "nb,pt-BR,en")
    assert (task.hf_subsets, other.hf_subsets) == (["en", "no", "pt"], ["en"])
    with pytest.raises(ConfigError, match="WITT2IRetrieval has none of them; its subsets are ar, bg"):
        chosen("XM3600T2IRetrieval,WITT2IRetrieval", "de")


# What a retriever can do.


def test_tasks_beyond_a_retriever_are_refused_before_anything_is_loaded(clip: Retriever, hybrid: Retriever) -> None:
    require_usable(clip, chosen("XM3600T2IRetrieval,CIFAR10", "en"))
    for words, said in (
        ("FlickrAudioToImageRetrieval", "needs audio"),
        ("CIRRIT2IRetrieval", "encodes each by itself"),
    ):
        with pytest.raises(ConfigError, match=said):
            require_usable(clip, chosen(words))
    for words, said in (
        ("CIFAR10", "ImageClassification.: the method of hybrid-s0 scores by several parts"),
        ("XModBenchT2IReranking", "scores by several parts"),
        ("NIGHTSI2IRetrieval", "finds image by image"),
    ):
        with pytest.raises(ConfigError, match=said):
            require_usable(hybrid, chosen(words))


def test_pictures_beyond_a_retriever_are_refused(tmp_path: Path) -> None:
    folder = encoders.family_folder(tmp_path / "bert", "bert")
    config = toy.config(tmp_path, {"name": "clip"}, {}, backbone={"kind": "sentence", "text": folder})
    with pytest.raises(ConfigError, match=r"CIFAR10: clip-s0 cannot encode its pictures .* a sentence encoder sees no"):
        require_usable(retrievers.retriever(config), chosen("CIFAR10"))


def test_languages_beyond_a_retriever_are_refused_with_those_it_has(hybrid: Retriever) -> None:
    with pytest.raises(ConfigError, match=r"cannot encode ar, bn, .*--langs en,es measures the others"):
        require_usable(hybrid, chosen("XM3600T2IRetrieval"))
    require_usable(hybrid, chosen("XM3600T2IRetrieval", "en,es"))


# Datasets of one's own.


def test_a_published_corpus_is_the_test_split_that_its_recipe_makes(tmp_path: Path) -> None:
    folder = xtd10(tmp_path / "xtd10" / "test")
    task = own_task("XTD10I2TRetrieval", folder.parent)
    about: Any = task.metadata
    assert (about.category, about.type) == ("i2t", "Any2AnyMultilingualRetrieval")
    assert about.eval_langs["zh"] == ["zho-Hans"] and len(about.eval_langs) == 11
    assert about.dataset["revision"] == own_task("XTD10T2IRetrieval", folder).metadata.revision
    other = xtd10(tmp_path / "other", **{"caption.pl": [["other"], ["words"], ["here"]]})
    assert about.dataset["revision"] != own_task("XTD10T2IRetrieval", other).metadata.revision
    with pytest.raises(ConfigError, match="'test' of 'xtd10'; expected the test split that `ccr-dist shards build vat"):
        own_task("VATEXZhT2VRetrieval", folder)
    assert own_task("T2V", folder).metadata.name == "xtd10T2IRetrieval"
    retrievers.dataset(tmp_path / "odd", {"image": [toy.picture(0)], "caption.de": [["a"]]}, name="my/own pictures")
    assert own_task("V2T", tmp_path / "odd").metadata.name == "my_own_picturesI2TRetrieval"


def test_data_in_the_form_of_mteb(tmp_path: Path) -> None:
    """Blank captions and items without a picture are left out; any model can read it."""
    captions: list[Any] = [["a", " ", "b"], ["c"], None, ["d"]]
    pictures: list[Any] = [toy.picture(0), None, toy.picture(2), toy.picture(3)]
    retrievers.dataset(tmp_path / "data", {"image": pictures, "caption.de": captions, "caption.de.mt": captions})
    found, asked = own_task("T2V", tmp_path / "data"), own_task("V2T", tmp_path / "data")
    for task in (found, asked):
        assert list(task.metadata.eval_langs) == ["de"]
        task.load_data()
    data = found.dataset["de"]["test"]
    assert data["corpus"]["id"][:] == ["item-0", "item-2", "item-3"] and data["corpus"][0]["image"].size == (32, 32)
    assert data["queries"][:] == {"id": ["item-0#0", "item-0#2", "item-3#0"], "text": ["a", "b", "d"]}
    assert data["relevant_docs"]["item-0#2"] == {"item-0": 1}
    data = asked.dataset["de"]["test"]
    assert data["queries"]["id"][:] == ["item-0", "item-3"] and len(data["corpus"]) == 3
    assert data["relevant_docs"]["item-0"] == {"item-0#0": 1, "item-0#2": 1}
    for task in (found, asked):
        task.unload_data()
        assert not task.data_loaded and task.metadata.name.startswith("small")


def test_a_dataset_that_is_none_of_these_is_refused(tmp_path: Path) -> None:
    retrievers.dataset(tmp_path / "texts", {"caption.de": [["a"]]})
    retrievers.dataset(tmp_path / "mute", {"image": [toy.picture(0)], "caption.de": [[" "]]})
    with pytest.raises(DataError, match="expected a column image or video"):
        own_task("T2V", tmp_path / "texts")
    with pytest.raises(DataError, match="no caption in 'de' belongs to an item"):
        own_task("T2V", tmp_path / "mute").load_data()


def test_videos(clip: Retriever, tmp_path: Path) -> None:
    pytest.importorskip("av")
    films = [generation.video(frames) for frames in (4, 12, 20)]
    folder = tmp_path / "vatex"
    retrievers.dataset(folder, {"video": films, "caption.zh": [[text, f"{text}。"] for text in ZH]}, name="vatex")
    with pytest.warns(UserWarning, match="not trained for language 'zh'"):
        for task in chosen(f"VATEXZhT2VRetrieval={folder},VATEXZhV2TRetrieval={folder}"):
            result, _ = measure(RetrieverEncoder(clip), task, tmp_path / "out")
            assert result.scores["test"][0]["hit_rate_at_3"] == 1.0 and result.languages == ["zho"]


# mteb's own tasks.


def local_xm3600(folder: Path) -> None:
    """The layout of `mteb/xm3600`: a Parquet file a language."""
    for lang, texts in (("en", toy.ENGLISH), ("es", toy.SPANISH)):
        rows: dict[str, Any] = {
            "image": [{"bytes": toy.picture(i), "path": None} for i in range(6)],
            "image_id": [f"{i:03d}" for i in range(6)],
            "captions": [[texts[i], f"{texts[i]} !"] for i in range(6)],
        }
        rows |= {name: rows["captions"] for name in ("captions_tokenized", "captions_tokenized_lowercase")}
        rows["image_locale"] = [lang] * 6
        text, lists = Value("string"), ListOf(Value("string"))
        columns = {"image": Image(), "image_id": text, "image_locale": text}
        kinds = {name: columns.get(name, lists) for name in rows}
        (folder / "data").mkdir(parents=True, exist_ok=True)
        made = Dataset.from_dict(rows, features=Features(kinds))
        made.to_parquet(folder / "data" / f"{lang}-00000-of-00001.parquet")


@pytest.mark.parametrize("kind", [XM3600T2IRetrieval, XM3600I2TRetrieval])
def test_a_task_of_mteb_measures_as_one_over_the_same_dataset(
    kind: Any, clip: Retriever, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    local_xm3600(tmp_path / "hub")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    place = {"path": str(tmp_path / "hub"), "revision": "local"}
    langs = {lang: kind.metadata.eval_langs[lang] for lang in ("en", "es")}
    about = kind.metadata.model_copy(update={"dataset": place, "eval_langs": langs})
    task = type(kind.__name__, (kind,), {"metadata": about})()
    columns: dict[str, Any] = {"image": [toy.picture(i) for i in range(6)]}
    columns |= {
        f"caption.{lang}": [[texts[i], f"{texts[i]} !"] for i in range(6)]
        for lang, texts in (("en", toy.ENGLISH), ("es", toy.SPANISH))
    }
    retrievers.dataset(tmp_path / "data", columns)
    encoder = RetrieverEncoder(clip)
    theirs, _ = measure(encoder, task, tmp_path / "out")
    own = own_task("T2V" if "T2I" in kind.__name__ else "V2T", tmp_path / "data")
    ours, _ = measure(encoder, own, tmp_path / "out")
    names = [f"{metric}_at_{k}" for metric in ("hit_rate", "recall", "ndcg") for k in (1, 5, 10)]
    for lang in range(2):
        rows = theirs.scores["test"][lang], ours.scores["test"][lang]
        assert rows[0]["hf_subset"] == rows[1]["hf_subset"]
        assert [rows[0][name] for name in names] == [rows[1][name] for name in names]


def test_other_kinds_of_tasks(clip: Retriever, tmp_path: Path) -> None:
    """Zero-shot classification: mteb finds the label that has the best score here, of each picture."""
    pictures = [toy.picture(number) for number in range(30)]
    paths = [tmp_path / f"{number}.png" for number in range(30)]
    for path, picture in zip(paths, pictures, strict=True):
        path.write_bytes(picture)
    scores = clip.similarity(clip.encode_text(toy.ENGLISH, "en"), clip.encode_images(paths))
    split = [
        (abs(int((one > other).sum()) - 15), i, j) for i, one in enumerate(scores) for j, other in enumerate(scores)
    ]
    _, *both = min(split)
    best = scores[both].argmax(axis=0)
    assert 5 < best.sum() < 25
    content = [{"bytes": data, "path": None} for data in pictures]
    features = Features({"image": Image(), "label": Value("int64")})
    data = Dataset.from_dict({"image": content, "label": best.tolist()}, features=features)

    class Spots(AbsTaskZeroShotClassification):
        metadata = mteb.get_task("CIFAR10ZeroShot").metadata.model_copy(update={"name": "Spots"})

        def load_data(self, num_proc: int | None = None, **kwargs: Any) -> None:
            self.dataset, self.data_loaded = {"test": data}, True

        def get_candidate_labels(self) -> list[str]:
            return [toy.ENGLISH[label] for label in both]

    require_usable(clip, [Spots()])
    result, _ = measure(RetrieverEncoder(clip), Spots(), tmp_path / "out")
    assert result.scores["test"][0]["accuracy"] == 1.0


def test_data_that_only_the_hub_has_is_a_sentence(clip: Retriever, tmp_path: Path) -> None:
    [task] = chosen("XM3600T2IRetrieval", "en")
    with pytest.raises(
        StorageError, match=r"XM3600T2IRetrieval: its data, mteb/xm3600 .* could not be loaded.*HF_HOME"
    ):
        measure(RetrieverEncoder(clip), task, tmp_path / "out")
