"""The direction of a translation, by family of model: how each is told it, and what is refused."""

from __future__ import annotations

import json
import shutil
import types
from pathlib import Path

import pytest

from ccr_dist.errors import EngineError
from ccr_dist.generate.cli import options_of
from ccr_dist.generate.engines.directions import direct
from tests.tiny import TEXTS, tiny_tokenizer
from tests.translators import loaded

pytestmark = pytest.mark.long

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
    engine = loaded(nllb, asked)
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
            loaded(nllb, target)
    with pytest.raises(EngineError, match=r"source language 'quz'"):
        loaded(nllb, "de", source="quz")


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
    engine = loaded(tmp_path / "mbart", "pt-BR")
    assert engine._generate["forced_bos_token_id"] == tokenizer.convert_tokens_to_ids("pt_XX")
    assert engine._tokenizer("a")["input_ids"][0] == tokenizer.convert_tokens_to_ids("en_XX")
    with pytest.raises(EngineError, match="target language 'zh-Hant': it does not know it"):
        loaded(tmp_path / "mbart", "zh-Hant")
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
    engine = loaded(folder, "pt_BR")
    assert engine._generate["forced_bos_token_id"] == m2m.get_lang_id("pt")
    assert engine._tokenizer("a")["input_ids"][0] == m2m.get_lang_id("en")
    assert len(engine.translate(["a yellow lemon", "two dogs"])) == 2
    with pytest.raises(EngineError, match="target language 'nn'"):
        loaded(folder, "nn")


def test_a_tokenizer_without_language_tokens_is_refused(nllb: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(nllb, tmp_path / "bare")
    for file in folder.glob("token*"):
        file.unlink()
    tiny_tokenizer(folder, TEXTS, family="xlm-roberta")
    with pytest.raises(EngineError, match=r"has no tokens for them, so it cannot be told the direction"):
        loaded(folder, "de")


def test_marian_models_with_several_targets_need_their_mark(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    folder = marian(tmp_path / "m", ">>por<<", ">>pob<<", ">>spa<<", source_lang="eng", target_lang="ROMANCE")
    mark = loaded(folder, "pt-BR")._tokenizer.convert_tokens_to_ids(">>pob<<")
    engine = loaded(folder, "pt-BR")
    assert (
        engine._direction.prefix == ">>pob<< "
        and engine._tokenizer(engine._direction.prefix + "a lemon")["input_ids"][0] == mark
    )
    assert (
        loaded(folder, "pt")._direction.prefix == ">>por<< "
        and loaded(folder, "es", prefix=">>spa<< ")._direction.prefix == ">>spa<< "
    )
    assert len(engine.translate(["a yellow lemon", "two dogs are playing in the snow"])) == 2
    with pytest.raises(EngineError, match=r"has no mark for 'de' .*>>pob<<, >>por<<, >>spa<<"):
        loaded(folder, "de")
    with pytest.raises(EngineError, match=r"the prefix '>>deu<< ' has none of its marks"):
        loaded(folder, "pt", prefix=">>deu<< ")
    with pytest.raises(EngineError, match=r"the prefix '>>spa<< ' asks .* for 'spa', and --to is 'pt'"):
        loaded(folder, "pt", prefix=">>spa<< ")


def test_marian_models_for_one_direction_do_no_other(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    folder = marian(tmp_path / "m", source_lang="en", target_lang="de")
    assert len(loaded(folder, "de-AT").translate(["a yellow lemon"])) == 1
    for source, target in (("en", "fr"), ("de", "en")):
        with pytest.raises(EngineError, match=rf"is made for en -> de, and {source} -> {target} is asked for"):
            loaded(folder, target, source=source)


def test_a_t5_that_is_not_told_the_direction_is_refused_unless_it_knows_only_one(
    t5: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(
        EngineError, match=r"is a T5, .*prefix=translate English to German: '.*prefix=''.* en -> es alone"
    ):
        loaded(t5, "es", prefix=None)
    loaded(t5, "es", prefix="translate English to Spanish: ")
    assert "may be in any language" not in capsys.readouterr().err
    loaded(t5, "es", **options_of(["prefix=''"], None))
    assert (
        "is given no prefix to tell it the direction. The translations may be in any language"
        in capsys.readouterr().err
    )


def test_t5_is_told_by_the_prefix_of_its_config(t5: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = shutil.copytree(t5, tmp_path / "t5")
    config = json.loads((folder / "config.json").read_text())
    tasks = {
        "translation_en_to_de": {"prefix": "translate English to German: "},
        "summarization": {"prefix": "summarize: "},
    }
    (folder / "config.json").write_text(json.dumps(config | {"task_specific_params": tasks}))
    assert loaded(folder, "de")._direction.prefix == "translate English to German: "
    assert (
        loaded(folder, "es", prefix="translate English to Spanish: ")._direction.prefix
        == "translate English to Spanish: "
    )
    with pytest.raises(EngineError, match=r"its config has none for en -> es, but for: en -> de"):
        loaded(folder, "es")
    with pytest.raises(EngineError, match=r"asks .* for 'de', and --to is 'es'"):
        loaded(folder, "es", prefix="translate English to German: ")
    assert capsys.readouterr().err.count("may be in any language") == 0


def test_madlad_is_told_by_a_token(t5: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer, T5ForConditionalGeneration

    folder = shutil.copytree(t5, tmp_path / "madlad")
    tokenizer, model = AutoTokenizer.from_pretrained(folder), T5ForConditionalGeneration.from_pretrained(folder)
    tokenizer.add_tokens(["<2pt>", "<2de>", "<2zh_Hant>"])
    tokenizer.save_pretrained(folder)
    model.resize_token_embeddings(len(tokenizer))
    model.save_pretrained(folder)
    assert (
        loaded(folder, "pt-BR")._direction.prefix == "<2pt> "
        and loaded(folder, "zh-TW")._direction.prefix == "<2zh_Hant> "
    )
    with pytest.raises(EngineError, match=r"has no mark for 'es' .*<2de>"):
        loaded(folder, "es")


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
