"""Exports: the folder, the check, what is refused; and each form loaded by its own tool, where it can be in a process
that cannot import ccr_dist.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from ccr_dist.cli import app
from ccr_dist.errors import CheckpointError, ConfigError, DataError, MismatchError
from ccr_dist.export import folder as exports
from ccr_dist.export.held_out import Measured
from ccr_dist.export.pictures import steps_of
from tests import exporting, toy

QUERIES = [*toy.SPANISH[:5], "una mancha azul", "Rojo"]
LECCR = {"dim": 8, "heads": 2, "slots": 2}
NRCCR = {"train_from": 1, "max_tokens": 20, "text_width": 8, "image_width": 12, "dim": 10, "heads": 2, "fusion": [0.0]}


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("export")


def exported(work: Path, tmp_path: Path, form: str, method: str, kind: str = "clip", section: Any = None, **more: Any):
    """(retriever, folder of the export, record)."""
    options = {key: more.pop(key) for key in list(more) if key not in ("languages", "pictures", "check")}
    retriever = exporting.loaded(exporting.model(work, method, kind, section=section, **options))
    out = tmp_path / "out"
    return retriever, out, exports.export(retriever, form, out, **more)


def rows(retriever, queries: list[str], lang: str) -> np.ndarray:
    found = retriever.encode_text(queries, lang)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def pictures(place: Path) -> list[Path]:
    place.mkdir()
    for number in range(3):
        (place / f"{number}.png").write_bytes(toy.picture(number * 7))
    Image.open(place / "0.png").resize((45, 62)).save(place / "3.png")
    return sorted(place.iterdir())


def rows_of(retriever, files) -> np.ndarray:
    found = retriever.encode_images(files)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


class Job:
    """An export and what its own tool is to make of it."""

    def __init__(self, work: Path, place: Path, form: str, method: str, kind: str, lang: str, **more: Any) -> None:
        place.mkdir()
        self.task = more.pop("task", None)
        self.retriever, self.out, self.record = exported(work, place, form, method, kind, **more)
        self.form, self.lang = form, lang
        self.queries = toy.ENGLISH[:4] if lang == "en" else QUERIES

    def asked(self, files: list[Path]) -> dict[str, Any]:
        self.files = files if self.record["pictures"] else []
        return {
            "form": self.form, "folder": str(self.out), "queries": self.queries, "lang": self.lang, "task": self.task,
            "pictures": [str(path) for path in self.files],
        }  # fmt: skip

    def check(self, found: dict[str, Any]) -> None:
        np.testing.assert_allclose(found["texts"], rows(self.retriever, self.queries, self.lang), atol=5e-6)
        if self.files:
            # Pillow's processor of transformers rounds a resized picture differently here and there
            loose = 1e-3 if self.form == "sentence-transformers" else 5e-6
            np.testing.assert_allclose(found["pictures"], rows_of(self.retriever, self.files), atol=loose)
        assert self.record["measured"][f"text.{self.lang}"]["least_cosine"] > 0.9999


def loaded_elsewhere(work: Path, tmp_path: Path, jobs: dict[str, tuple], **options: Any) -> dict[str, Job]:
    made = {
        name: Job(work, tmp_path / name, form, method, kind, lang, **more)
        for name, (form, method, kind, lang, more) in jobs.items()
    }
    files = pictures(tmp_path / "pictures")
    asked = [job.asked(files) for job in made.values()]
    for job, found in zip(made.values(), exporting.elsewhere(tmp_path, asked, **options), strict=True):
        job.check(found)
    return made


ST, OC = "sentence-transformers", "open_clip"


def test_other_tools_load_them_without_ours(work, tmp_path) -> None:
    """One process for all: it imports every tool once."""
    from sentence_transformers import SentenceTransformer

    jobs = {
        "dual": (ST, "clip", "dual", "en", {}),
        "full": (ST, "full", "clip", "es", {"task": "es"}),
        "leccr": (ST, "leccr", "clip", "es", LECCR),
        "map": (ST, "map", "dual", "es", {"task": "es"}),
        "zero-shot": (OC, "clip", "clip", "en", {}),
        "lora": ("peft", "lora", "dual", "es", {}),
    }
    made = loaded_elsewhere(work, tmp_path, jobs, forbidden=["ccr_dist"])
    assert made["zero-shot"].record["pictures"]
    assert made["lora"].record["languages"] == ["es"]
    assert "by the backbone alone" in (made["lora"].out / "README.md").read_text()
    assert not [name for name, job in made.items() if "import" in job.record["facts"]]
    model = SentenceTransformer(str(made["full"].out), device="cpu")
    for task in (None, "fr"):  # a language has to be named
        with pytest.raises(ValueError, match="route"):
            model.encode(QUERIES, task=task)


@pytest.mark.slow
def test_more_of_them(work, tmp_path) -> None:
    """Pictures beside texts are a route where a processor of transformers gives the same pixels."""
    jobs = {
        "hf": (ST, "lora", "hf-clip", "es", {"task": "es"}),
        "square": (ST, "clip", "clip", "en", {"section": {"resize": "squash"}}),
        "metaclip": (ST, "full", "hf-metaclip_2", "es", {"task": "es"}),
        "lora": (ST, "lora", "dual", "es", {"task": "es"}),
        "full-x": (ST, "full", "xlm-roberta", "es", {"task": "es"}),
        "full-en": (ST, "full", "xlm-roberta", "en", {"task": "en"}),
        "english": (ST, "english", "dual", "en", {}),
        "bert": (ST, "clip", "bert", "en", {}),
        "oc-full": (OC, "full", "custom", "es", {"languages": ["es"]}),
        "merged": (OC, "lora", "clip", "es", {"languages": ["es"]}),
        "lora-clip": ("peft", "lora", "clip", "es", {}),
    }
    made = loaded_elsewhere(work, tmp_path, jobs, forbidden=["ccr_dist"])
    with_pictures = {name for name, job in made.items() if job.record["pictures"]}
    assert with_pictures == {"hf", "metaclip", "square", "oc-full", "merged"}


@pytest.mark.parametrize(
    "names", [("dasd", "static", "kernel"), pytest.param(("nrccr", "siglip"), marks=pytest.mark.slow)]
)
def test_a_registered_type_needs_ours_and_says_so(work, tmp_path, names) -> None:
    jobs = {
        "dasd": (ST, "dasd", "clip", "es", {"rank": 4, "task": "es"}),
        "static": (ST, "static", "clip", "es", {"task": "es"}),
        "nrccr": (ST, "nrccr", "clip", "es", NRCCR),
        "kernel": (ST, "kernel", "clip", "es", {"landmarks": 9, "task": "es"}),
        "siglip": (ST, "clip", "hf-siglip", "en", {}),
    }
    asked = {name: jobs[name] for name in names}
    made = loaded_elsewhere(work, tmp_path, asked, forbidden=[], imports="ccr_dist.export.registered")
    for job in made.values():
        assert job.record["facts"]["import"] == "ccr_dist.export.registered"
        assert "import ccr_dist.export.registered" in (job.out / "README.md").read_text()
        assert not [path for path in job.out.rglob("*") if path.is_symlink()]


FORBIDDEN = ["ccr_dist", "torch", "transformers", "onnx", "huggingface_hub"]


def test_onnx_needs_onnxruntime_alone(work, tmp_path) -> None:
    jobs = {"dasd": ("onnx", "dasd", "clip", "es", {"rank": 4, "languages": ["es"], "pictures": False})}
    made = loaded_elsewhere(work, tmp_path, jobs, forbidden=[*FORBIDDEN, "PIL"])
    assert len((made["dasd"].out / "example.py").read_text().splitlines()) <= 30
    for graph in made["dasd"].out.glob("*.onnx"):
        assert b"stack_trace" not in graph.read_bytes(), "it names files of this machine"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "kind", "options"),
    [("leccr", "clip", {**LECCR, "descriptions": False}), ("static", "xlm-roberta", {}), ("nrccr", "clip", NRCCR),
     ("lora", "dual", {}), ("full", "clip", {}), ("static", "siglip", {}), ("clip", "dual", {}),
     ("map", "dual", {}), ("kernel", "clip", {"landmarks": 9})],
)  # fmt: skip
def test_onnx_of_more_methods(work, tmp_path, method, kind, options) -> None:
    lang = "en" if method == "clip" else "es"
    made = loaded_elsewhere(work, tmp_path, {"one": ("onnx", method, kind, lang, options)}, forbidden=FORBIDDEN)
    assert made["one"].record["pictures"]


def test_a_model_that_reads_any_language_is_exported_for_those_that_are_asked_for(work, tmp_path) -> None:
    queries = tmp_path / "queries.tsv"
    queries.write_text("".join(f"de\tein {each} Fleck\n" for each in ("roter", "blauer", "weisser")))
    _, out, record = exported(work, tmp_path, "safetensors", "map", languages=["de"], check=str(queries))
    assert record["languages"] == ["de"] and (out / "model.json").exists()


def test_safetensors_is_the_model_folder_with_a_list(work, tmp_path) -> None:
    retriever, out, _ = exported(work, tmp_path, "safetensors", "dasd", rank=4)
    assert np.array_equal(exporting.loaded(out).encode_text(QUERIES, "es"), retriever.encode_text(QUERIES, "es"))
    listed = json.loads((out / "tensors.json").read_text())["model.safetensors"]
    assert listed["net.front_end.linear.weight"] == {"shape": [24, 20], "dtype": "F32"}


# What is refused.


@pytest.mark.parametrize(
    ("form", "method", "kind", "more", "reason"),
    [
        ("open_clip", "dasd", "clip", {"languages": ["es"]}, "between the blocks"),
        ("open_clip", "full", "clip", {}, "one for each of: en; es"),
        ("open_clip", "clip", "dual", {}, "no model of open_clip"),
        ("open_clip", "clip", "bert", {}, "its text encoder is described by a folder"),
        ("open_clip", "leccr", "clip", LECCR, "a description of each picture"),
        ("open_clip", "map", "clip", {"languages": ["es"]}, "a text encoder of its own"),
        ("peft", "dasd", "clip", {}, "what method lora trains"),
        ("peft", "map", "clip", {}, "what method lora trains"),
        ("peft", "lora", "clip", {"pictures": True}, "the text side alone"),
        ("sentence-transformers", "clip", "clip", {"pictures": True}, "by a pixel"),
        ("sentence-transformers", "leccr", "clip", {**LECCR, "pictures": True}, "a description of each picture"),
        ("sentence-transformers", "full", "clip", {"languages": ["fr"]}, "the model's languages are en, es"),
        ("onnx", "clip", "clip", {"check": "nowhere.tsv"}, "nowhere.tsv"),
        ("tflite", "clip", "clip", {}, "expected one of sentence-transformers"),
    ],
)
def test_what_a_tool_cannot_do_is_refused_with_the_reason(work, tmp_path, form, method, kind, more, reason) -> None:
    with pytest.raises((ConfigError, DataError), match=reason):
        exported(work, tmp_path, form, method, kind, **more)
    assert not list(tmp_path.iterdir())


def test_an_export_that_is_off_leaves_what_was_there(work, tmp_path, monkeypatch) -> None:
    retriever, out, _ = exported(work, tmp_path, "sentence-transformers", "full")
    before = {path: path.read_bytes() for path in out.rglob("*.*") if path.is_file()}
    from ccr_dist.export.forms import modules

    right = modules.denses
    monkeypatch.setattr(modules, "denses", lambda layers: right(layers)[:-1])  # a projection is left out
    with pytest.raises((MismatchError, RuntimeError)):
        exports.export(retriever, "sentence-transformers", out)
    assert {path: path.read_bytes() for path in out.rglob("*.*") if path.is_file()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_another_folder_is_not_overwritten(work, tmp_path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("mine")
    with pytest.raises(ConfigError, match="no export of ours"):
        exported(work, tmp_path, "safetensors", "clip")
    assert (tmp_path / "out" / "thesis.tex").read_text() == "mine"


def test_the_check_is_on_rows_that_differ() -> None:
    """Where all rows are nearly alike, a cosine says little."""
    generator = np.random.default_rng(0)
    alike = 1 + 1e-3 * generator.standard_normal((8, 16))
    alike /= np.linalg.norm(alike, axis=1, keepdims=True)
    Measured().compare("text.pt", alike.astype(np.float32), alike)
    with pytest.raises(MismatchError, match="does not give what the model gives"):
        Measured().compare("text.pt", np.roll(alike, 1, axis=0), alike)
    broken = alike.copy()
    broken[3, 2] = np.nan
    with pytest.raises(MismatchError, match="number 3"):
        Measured().compare("text.pt", broken, alike)
    with pytest.raises(MismatchError, match="of shape"):
        Measured().compare("text.pt", alike[:, :8], alike)


def test_a_file_of_queries_is_what_it_is_checked_on(work, tmp_path) -> None:
    queries = tmp_path / "queries.tsv"
    queries.write_text("es\tuna mancha roja\nes\tdos\nes\tverde arriba\n")
    _, _, record = exported(work, tmp_path, "sentence-transformers", "full", languages=["es"], check=str(queries))
    assert record["measured"]["text.es"]["rows"] == 3 and record["checked_on"] == "queries.tsv"
    queries.write_text("una mancha roja\n")
    with pytest.raises(ConfigError, match="line 1"):
        exported(work, tmp_path, "sentence-transformers", "full", languages=["es"], check=str(queries))


def test_without_held_out_queries_there_is_no_export(work, tmp_path) -> None:
    place = exporting.model(work, "clip")
    retriever = exporting.loaded(place)
    nowhere = retriever.config.data.model_copy(update={"val": "gone/val", "test": None})
    retriever.config = retriever.config.model_copy(update={"data": nowhere})
    with pytest.raises(ConfigError, match="--check"):
        exports.export(retriever, "safetensors", tmp_path / "out")


def test_a_damaged_record_is_no_export(work, tmp_path) -> None:
    _, out, record = exported(work, tmp_path, "safetensors", "clip")
    assert exports.read_record(out) == record
    (out / exports.RECORD).write_text((out / exports.RECORD).read_text().replace("safetensors", "onnx"))
    with pytest.raises(CheckpointError, match="damaged"):
        exports.read_record(out)


def test_steps_of_pictures_are_data() -> None:
    from torchvision import transforms

    with pytest.raises(ConfigError, match="ColorJitter"):
        steps_of(transforms.Compose([transforms.Resize(8), transforms.ColorJitter()]))


# Commands.


def test_the_commands(work, tmp_path) -> None:
    place, out = exporting.model(work, "clip"), tmp_path / "out"
    run = CliRunner()
    done = run.invoke(app, ["export", str(place), "--to", "open_clip", "--out", str(out), "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["model"]["name"] == "clip-s0"
    again = run.invoke(app, ["export", str(place), "--to", "safetensors", "--out", str(out)])
    assert again.exit_code == 0 and "README.md says how it is used" in again.output
    wrong = run.invoke(app, ["export", str(place), "--to", "peft", "--out", str(tmp_path / "other")])
    assert wrong.exit_code == 2 and "what method lora trains" in wrong.output
    shutil.rmtree(out)
    nothing = run.invoke(app, ["push", str(out), "org/m"])
    assert nothing.exit_code == 2 and "no such folder" in nothing.output
