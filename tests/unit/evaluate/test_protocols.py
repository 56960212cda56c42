"""Metrics by hand: three items with two captions each, both protocols."""

import numpy as np
import pytest
import torch

from ccr_dist.errors import DataError
from ccr_dist.evaluate.protocols import RECALL_NAMES, bootstrap, language_result, metrics
from ccr_dist.evaluate.retrieval import ranks

# captions a0 a1 b0 b1 c0 c1 (rows) against pictures A B C (columns)
SCORES = torch.tensor([[9, 1, 2], [2, 8, 7], [8, 6, 1], [7, 5, 3], [1, 2, 4], [3, 9, 5]], dtype=torch.float32)
OWNER = np.array([0, 0, 1, 1, 2, 2])


def column(n):
    return {"global": torch.arange(n, dtype=torch.float32)[:, None]}


def by_table(table):
    return lambda text, visual: {"global": table[text["global"][:, 0].long()][:, visual["global"][:, 0].long()]}


@pytest.fixture(scope="module")
def by_hand():
    found = ranks(column(6), column(3), torch.from_numpy(OWNER), torch.arange(3), by_table(SCORES))
    return found.text_to_visual.numpy(), found.visual_to_text.numpy(), found.visual_to_text_items.numpy()


def test_the_3_by_2_example(by_hand):
    t2v, v2t, v2t_items = by_hand
    # a0: A first. a1: behind B and C. b0, b1: behind A. c0: C first. c1: behind B.
    assert t2v.tolist() == [1, 3, 2, 2, 1, 2]
    # A: a0 is first. B: c1 9, a1 8, then b0 6. C: a1 7, then c1 5.
    assert v2t.tolist() == [1, 3, 2]
    # Merged by item, B: C 9, A 8, B 6; C: A 7, C 5.
    assert v2t_items.tolist() == [1, 3, 2]
    result = language_result("caption.xx", t2v, v2t, v2t_items, OWNER)
    assert result.metrics["t2v_R1"] == pytest.approx(100 * 2 / 6)
    assert result.metrics["v2t_R1"] == pytest.approx(100 / 3)
    assert result.metrics["t2v_R5"] == result.metrics["v2t_R10"] == 100
    assert result.metrics["t2v_MRR"] == pytest.approx((1 + 1 / 3 + 1 / 2 + 1 / 2 + 1 + 1 / 2) / 6)
    assert result.metrics["t2v_median_rank"] == 2 and result.metrics["v2t_median_rank"] == 2
    assert result.metrics["SumR"] == pytest.approx(100 * 2 / 6 + 100 / 3 + 400)
    assert result.counts == {"captions": 6, "items": 3, "queries_v2t": 3, "items_without_caption": 0}


def test_the_protocols_differ_where_one_item_has_several_captions_ahead():
    """Both captions of B beat A's own for picture A: third by captions, second by items."""
    scores = torch.tensor([[5, 0], [1, 0], [7, 9], [6, 9]], dtype=torch.float32)
    found = ranks(column(4), column(2), torch.tensor([0, 0, 1, 1]), torch.arange(2), by_table(scores))
    assert found.visual_to_text.tolist() == [3, 1]
    assert found.visual_to_text_items.tolist() == [2, 1]


def test_sum_and_mean_of_the_recalls():
    random = np.random.default_rng(0)
    result = metrics(random.integers(1, 30, 200), random.integers(1, 30, 50))
    assert result["SumR"] == pytest.approx(6 * result["mR"])
    assert result["SumR"] == pytest.approx(sum(result[name] for name in RECALL_NAMES))


def test_items_without_captions_are_no_queries():
    result = language_result(
        "caption.xx", np.array([1, 20]), np.array([1, 0, 1]), np.array([1, 0, 1]), np.array([0, 2])
    )
    assert result.metrics["v2t_R1"] == 100
    assert result.counts == {"captions": 2, "items": 3, "queries_v2t": 2, "items_without_caption": 1}


def test_nothing_to_count_is_an_error():
    with pytest.raises(DataError, match=r"caption\.xx"):
        language_result("caption.xx", np.array([], int), np.array([0]), np.array([0]), np.array([], int))


def test_bootstrap_is_seeded_and_covers_the_value():
    random = np.random.default_rng(1)
    owner = np.repeat(np.arange(200), 5)
    t2v, v2t = random.integers(1, 40, 1000), random.integers(1, 40, 200)
    value, first, again = metrics(t2v, v2t), bootstrap(t2v, v2t, owner, seed=3), bootstrap(t2v, v2t, owner, seed=3)
    assert first == again != bootstrap(t2v, v2t, owner, seed=4)
    for name, (low, high) in first.items():
        assert low < value[name] < high


def test_bootstrap_resamples_whole_items():
    """Five equal captions an item say no more than one: the interval is as wide as the one with a caption an item."""
    t2v = np.where(np.random.default_rng(2).random(300) < 0.5, 1, 50)
    once = bootstrap(t2v, t2v, np.arange(300))["t2v_R1"]
    five = bootstrap(np.repeat(t2v, 5), t2v, np.repeat(np.arange(300), 5))["t2v_R1"]
    assert five == pytest.approx(once)
    binomial = 2 * 1.96 * 100 * np.sqrt(0.25 / 300)
    assert once[1] - once[0] == pytest.approx(binomial, rel=0.15)


def test_a_perfect_and_a_single_item_result_have_an_interval():
    assert bootstrap(np.ones(4, int), np.ones(4, int), np.arange(4))["mR"] == (100, 100)
    assert bootstrap(np.array([1]), np.array([2]), np.array([0]))["SumR"] == (500, 500)
