"""Ranks against a reference written with loops, on integer scores so that ties and equality are exact."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ccr_dist.errors import ConfigError, DataError, NonFiniteError
from ccr_dist.evaluate.retrieval import Fusion, cosine, ranges, ranks, top_k
from tests.nearness import close


def by_table(table):
    """A score that looks pairs up: features are row numbers."""
    return lambda text, visual: {"global": table[text["global"][:, 0].long()][:, visual["global"][:, 0].long()]}


def column(n):
    return {"global": torch.arange(n, dtype=torch.float32)[:, None]}


def reference(table, text_item, group):
    """(text→visual, visual→text by captions, by items), one query and one candidate at a time."""
    captions, items = range(len(text_item)), range(len(group))

    def rank(candidates, right, score):
        best = max((score(c) for c in candidates if right(c)), default=None)
        return 0 if best is None else 1 + sum(1 for c in candidates if not right(c) and score(c) >= best)

    def item_score(v):
        return lambda i: max(float(table[t, v]) for t in captions if text_item[t] == i)

    owners = sorted(set(text_item))
    return (
        [
            rank(items, lambda v, t=t: group[v] == group[text_item[t]], lambda v, t=t: float(table[t, v]))
            for t in captions
        ],
        [
            rank(captions, lambda t, v=v: group[v] == group[text_item[t]], lambda t, v=v: float(table[t, v]))
            for v in items
        ],
        [rank(owners, lambda i, v=v: group[v] == group[i], item_score(v)) for v in items],
    )


@st.composite
def problems(draw):
    items = draw(st.integers(1, 6))
    # several captions an item, items with none
    text_item = draw(st.lists(st.integers(0, items - 1), min_size=1, max_size=9))
    group = draw(st.lists(st.integers(0, items), min_size=items, max_size=items))
    # many ties
    scores = draw(st.lists(st.integers(-2, 2), min_size=items * len(text_item), max_size=items * len(text_item)))
    return np.array(scores, dtype=np.float32).reshape(len(text_item), items), text_item, group, draw(st.integers(1, 10))


@given(problems())
def test_ranks_equal_the_reference(problem):
    table, text_item, group, block = problem
    found = ranks(
        column(len(text_item)),
        column(len(group)),
        torch.tensor(text_item),
        torch.tensor(group),
        by_table(torch.from_numpy(table)),
        block=block,
    )
    expected = reference(table, text_item, group)
    assert found.text_to_visual.tolist() == expected[0]
    assert found.visual_to_text.tolist() == expected[1]
    assert found.visual_to_text_items.tolist() == expected[2]


def test_ties_count_against_the_method():
    """A collapsed model, whose vectors are all equal, is last in everything, wherever its vectors stand in a block."""
    vector = torch.linspace(-1, 1, 37)
    found = ranks(
        {"global": vector.repeat(61, 1)},
        {"global": vector.repeat(61, 1) * 3},
        torch.arange(61),
        torch.arange(61),
        block=7,
    )
    assert (
        found.text_to_visual.tolist()
        == found.visual_to_text.tolist()
        == found.visual_to_text_items.tolist()
        == [61] * 61
    )


def test_the_block_size_changes_nothing():
    random = torch.Generator().manual_seed(0)
    text, visual = ({"global": torch.randn(n, 16, generator=random)} for n in (50, 20))
    text_item, group = torch.arange(50) % 20, torch.arange(20) % 17
    whole = ranks(text, visual, text_item, group)
    for block in (1, 3, 64):
        cut = ranks(text, visual, text_item, group, block=block)
        assert torch.equal(cut.text_to_visual, whole.text_to_visual)
        assert torch.equal(cut.visual_to_text, whole.visual_to_text)
        assert torch.equal(cut.visual_to_text_items, whole.visual_to_text_items)


def test_nan_scores_are_named():
    table = torch.zeros(3, 2)
    table[1, 1] = torch.nan
    with pytest.raises(NonFiniteError, match="caption 1 and item 1 is NaN"):
        ranks(column(3), column(2), torch.tensor([0, 0, 1]), torch.tensor([0, 1]), by_table(table))


@pytest.mark.parametrize(
    ("text_item", "group", "message"),
    [
        ([0, 2], [0, 1], "caption 1 belongs to item 2"),
        ([0], [0, 1], "text_item has shape"),
        ([0, 1], [0], "group has shape"),
    ],
)
def test_wrong_shapes_and_rows_are_errors(text_item, group, message):
    with pytest.raises(DataError, match=message):
        ranks(column(2), column(2), torch.tensor(text_item), torch.tensor(group))


def test_an_empty_side_is_an_error():
    with pytest.raises(DataError, match="nothing to rank"):
        ranks(
            {"global": torch.zeros(0, 4)},
            {"global": torch.zeros(3, 4)},
            torch.zeros(0, dtype=torch.int64),
            torch.arange(3),
        )


def test_top_k_is_exact_and_breaks_ties_by_row():
    table = torch.tensor([[0.0, 2.0, 2.0, 1.0], [3.0, 3.0, 3.0, 3.0]])
    items, scores = top_k(column(2), column(4), torch.arange(2), 3, by_table(table), block=1)
    assert items.tolist() == [[1, 2, 3], [0, 1, 2]]
    assert scores.tolist() == [[2.0, 2.0, 1.0], [3.0, 3.0, 3.0]]
    assert top_k(column(2), column(4), torch.arange(2), 9, by_table(table))[0].shape == (2, 4)


def test_cosine_ignores_length():
    text, visual = (
        {"global": torch.tensor([[3.0, 0.0]])},
        {"global": torch.tensor([[0.5, 0.0], [0.0, 9.0], [-2.0, 0.0]])},
    )
    assert cosine(text, visual)["global"].tolist() == [[1.0, 0.0, -1.0]]


def two_parts(text, visual):
    """Parts on scales of their own; a query's parts are its row of two tables."""
    return {"global": text["global"] @ visual["global"].T, "local": 100 * (text["local"] @ visual["local"].T) + 7}


@pytest.mark.parametrize("minmax", [False, True])
@pytest.mark.parametrize("block", [1, 3, 64])
def test_parts_are_fused_by_weight_over_the_whole_matrix(minmax, block):
    """Different numbers of captions and items; min and max come from the whole matrix, not from a block."""
    random = torch.Generator().manual_seed(1)
    text, visual = ({name: torch.randn(n, 3, generator=random) for name in ("global", "local")} for n in (11, 5))
    parts = two_parts({k: v.double() for k, v in text.items()}, {k: v.double() for k, v in visual.items()})
    if minmax:
        parts = {name: (x - x.min()) / (x.max() - x.min()) for name, x in parts.items()}
    table = (0.9 * parts["global"] + 0.1 * parts["local"]).float()
    text_item = torch.arange(11) % 5
    fusion = Fusion({"global": 0.9, "local": 0.1}, minmax=minmax)
    found = ranks(text, visual, text_item, torch.arange(5), two_parts, fusion=fusion, block=block)
    expected = ranks(column(11), column(5), text_item, torch.arange(5), by_table(table))
    assert torch.equal(found.text_to_visual, expected.text_to_visual) and torch.equal(
        found.visual_to_text, expected.visual_to_text
    )
    _, scores = top_k(text, visual, torch.tensor([4, 9]), 2, two_parts, fusion=fusion, block=block)
    close(scores, table[[4, 9]].sort(dim=1, descending=True).values[:, :2])
    assert ("transductive" in str(fusion)) == minmax


def test_a_part_without_weight_is_not_needed_and_a_constant_one_decides_nothing():
    text, visual = column(3), column(2)
    table = torch.tensor([[0.0, 1.0], [2.0, 1.0], [0.0, 3.0]])
    alone = ranks(
        text,
        visual,
        torch.tensor([0, 0, 1]),
        torch.arange(2),
        by_table(table),
        fusion=Fusion({"global": 1.0, "local": 0.0}),
    )
    constant = ranks(
        text,
        visual,
        torch.tensor([0, 0, 1]),
        torch.arange(2),
        lambda t, v: by_table(table)(t, v) | {"local": torch.full((len(t["global"]), len(v["global"])), 4.0)},
        fusion=Fusion({"global": 0.5, "local": 0.5}, minmax=True),
    )
    assert alone.text_to_visual.tolist() == constant.text_to_visual.tolist() == [2, 1, 1]


def test_ranges_found_on_one_split_score_another():
    """Frozen ranges make a score of a pair alone; those of the split itself give what min-max over it gives."""
    random = torch.Generator().manual_seed(2)
    text, visual = ({name: torch.randn(n, 3, generator=random) for name in ("global", "local")} for n in (11, 5))
    fusion = Fusion({"global": 0.9, "local": 0.1, "unused": 0.0}, minmax=True)
    parts = two_parts({k: v.double() for k, v in text.items()}, {k: v.double() for k, v in visual.items()})
    found = ranges(text, visual, two_parts, fusion, block=3)
    assert found == {name: (float(part.min()), float(part.max())) for name, part in parts.items()}

    frozen = replace(fusion, ranges=found)
    assert "transductive" in str(fusion) and "transductive" not in str(frozen)
    queries = torch.arange(11)
    whole = top_k(text, visual, queries, 5, two_parts, fusion=fusion)
    for each, same in zip(whole, top_k(text, visual, queries, 5, two_parts, fusion=frozen), strict=True):
        assert torch.equal(each, same)
    first = {name: part[:1] for name, part in text.items()}
    for each, same in zip(whole, top_k(first, visual, queries[:1], 5, two_parts, fusion=frozen), strict=True):
        assert torch.equal(each[:1], same)
    close(frozen.fused(parts).sort(dim=1, descending=True).values, whole[1])


def test_frozen_ranges_name_a_part_that_they_lack():
    with pytest.raises(ConfigError, match=r"part 'local' is not known; known are global"):
        Fusion({"local": 1.0}, minmax=True, ranges={"global": (0.0, 1.0)}).fused({"local": torch.zeros(1, 1)})


@pytest.mark.parametrize("kind", ["random", "near", "collapsed"])
@pytest.mark.parametrize("groups", [1, 9, 60])
def test_the_fast_way_gives_the_ranks_of_the_general_one(kind, groups):
    """A score that is not marked as plain cosine goes the way of all other scores."""
    random = torch.Generator().manual_seed(groups)
    visual = torch.randn(60, 24, generator=random)
    text_item = torch.randint(0, 60, (150,), generator=random)
    text = visual[text_item] + 2 * torch.randn(150, 24, generator=random)
    if kind != "random":
        text, visual = (1 + (1e-6 if kind == "near" else 0) * x for x in (text, visual))
    group = torch.randint(0, groups, (60,), generator=random)
    banks = {"global": text}, {"global": visual}
    fast = ranks(*banks, text_item, group)
    general = ranks(*banks, text_item, group, lambda t, v: cosine(t, v))
    assert torch.equal(fast.text_to_visual, general.text_to_visual)
    assert torch.equal(fast.visual_to_text, general.visual_to_text)
    assert torch.equal(fast.visual_to_text_items, general.visual_to_text_items)


@pytest.mark.parametrize(
    ("caption", "item", "named"),
    [([1], [], "caption 1 and item 0"), ([], [2], "caption 0 and item 2"), ([0, 1], [1], "caption 0 and item 0")],
)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_features_that_are_not_finite_are_named_alike_on_both_ways(caption, item, named, bad):
    text, visual = torch.ones(3, 2), torch.ones(3, 2)
    text[caption, 1], visual[item, 0] = bad, bad
    for score in (cosine, lambda t, v: cosine(t, v)):
        with pytest.raises(NonFiniteError, match=f"the score of {named} is NaN"):
            ranks({"global": text}, {"global": visual}, torch.arange(3), torch.arange(3), score)


def test_methods_that_score_by_cosine_alone_go_the_fast_way():
    from ccr_dist.methods.base import Method
    from ccr_dist.methods.hybrid.method import Hybrid
    from ccr_dist.methods.nrccr.method import Nrccr

    marked = [getattr(kind.scores, "plain_cosine", False) for kind in (Method, Hybrid, Nrccr)]
    assert marked == [True, False, False]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64, torch.int64])
def test_features_of_any_type_are_ranked(dtype):
    text, visual = torch.tensor([[3, 1], [1, 3], [1, 1]]).to(dtype), torch.tensor([[2, 1], [1, 2]]).to(dtype)
    found = ranks({"global": text}, {"global": visual}, torch.tensor([0, 1, 1]), torch.arange(2))
    assert found.text_to_visual.tolist() == [1, 1, 2] and found.visual_to_text.tolist() == [1, 1]
