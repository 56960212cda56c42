"""What is dropped or cut back of generated texts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ccr_dist.generate.text.filters import DROPPED, Filters, is_long, judge, kept_of, list_of, repeats

FILTERS = Filters()
GOOD = "A dog runs over a green meadow. Behind it there is a red barn."


@pytest.mark.parametrize(
    ("text", "finish", "expected"),
    [
        (GOOD, "stop", (GOOD, "stop")),
        (GOOD + " In the sky one can", "length", (GOOD, "length")),
        ('He says "stop!" and then', "length", ('He says "stop!"', "length")),
        ("in the sky one can see that", "length", (None, "short")),
        ("A dog.", "stop", (None, "short")),
        ("  ", "stop", (None, "short")),
        ("", "length", (None, "short")),
        ("I'm sorry, but I can't help with that.", "stop", (None, "refused")),
        ("I’m sorry, I cannot see it", "length", (None, "refused")),
        ("As an AI language model I see nothing here.", "stop", (None, "refused")),
        (
            GOOD * 3 + " A man says I can't go on, and sits down.",
            "stop",
            (GOOD * 3 + " A man says I can't go on, and sits down.", "stop"),
        ),
        ("A dog and a dog and a dog and a dog and a dog", "length", (None, "repeated")),
        ("A very very very very old tree stands here.", "stop", (None, "repeated")),
        ("A line.\nAnother one.\nA line.\nA line.\nSo.\nA line.", "stop", (None, "repeated")),
        ("Ein Hund läuft über die Wiese, und ein zweiter Hund läuft hinterher.", "stop", None),
        ("一只狗在草地上奔跑。", "stop", None),
        ("一只狗在草地上奔跑。它的后面有", "length", ("一只狗在草地上奔跑。", "length")),
        ("一只狗在草地上,草地上,草地上,草地上,草地上,草地上,草地上", "stop", (None, "repeated")),
        ("ハハハハと笑う男の人がベンチに座っている。", "stop", None),
    ],
)
def test_judge(text, finish, expected):
    assert judge(text, finish, FILTERS) == (expected or (text, finish))


SEEN = (
    'A man wears a T-shirt printed with the words "I can\'t even" and smiles.',
    "A T-shirt reads 'I can't even' in white letters.",
    "A sign says “Please upload your receipt here”. Two people stand there.",
    "A shop serves as an air freshener museum; it won as an AIM trophy.",
    "A woman holds a card with I can't go on in red letters.",
    "The picture was made as an AI-generated study of light.",
)
REFUSED = (
    "Sorry, but I can't help with that request.",
    "Unfortunately, I am unable to see the picture.",
    "I apologize, but I cannot describe people.",
    "It seems that no image was provided here.",
    "Hello! I'm sorry, I cannot do that for you.",
    "很抱歉，我不能描述这张图片。",
)


@pytest.mark.parametrize("text", SEEN)
def test_what_is_written_in_a_picture_refuses_nothing(text):
    assert judge(text, "stop", FILTERS) == (text, "stop")


@pytest.mark.parametrize("text", REFUSED)
def test_refusals(text):
    assert judge(text, "stop", FILTERS) == (None, "refused")
    assert kept_of(text, "stop", FILTERS, listed=True) == (None, "refused", [])


def test_what_is_odd_in_the_source_is_no_fault_of_the_translation():
    for source in ("I'm sorry, I can't stay.", "no, no, no, no, no"):
        assert judge("No, no, no, no, no", "stop", FILTERS, source=source)[0] or "sorry" in source
    assert judge("I'm sorry, I can't stay.", "stop", FILTERS, source="I'm sorry, I can't stay here.") == (
        "I'm sorry, I can't stay.",
        "stop",
    )


@pytest.mark.parametrize(
    ("said", "listed", "expected"),
    [
        ('```json\n["dog", "barn"]\n```', True, ("dog, barn", "stop", ["fence"])),
        ('Here are the objects:\n```json\n["dog"]\n```', True, ("dog", "stop", ["preamble", "fence"])),
        ('The objects: ["dog", "barn"].', True, ("dog, barn", "stop", [])),
        ('<think>Let me see.</think>["dog"]', True, ("dog", "stop", ["thinking"])),
        ("<think>\nLet me see, there is", True, (None, "unanswered", [])),
        ("<think>\nLet me see, there is", False, (None, "unanswered", [])),
        ("a dog and a barn", True, (None, "malformed", [])),
    ],
)
def test_what_is_kept(said, listed, expected):
    assert kept_of(said, "stop", FILTERS, listed=listed) == expected
    assert expected[0] or expected[1] in DROPPED


def test_translations_much_longer_than_their_source():
    assert is_long("ein rotes Auto, " * 8, "a red car") and not is_long("ein sehr schönes rotes Auto", "a red car")
    assert not is_long("នៅលើតុមានក្រូចឆ្មាពណ៌លឿងមួយ", "a lemon on a table")


def test_long_answers_are_cut_to_whole_sentences():
    assert judge(GOOD, "stop", FILTERS, max_words=10) == ("A dog runs over a green meadow.", "length")
    assert judge(GOOD, "stop", FILTERS, max_words=13) == ("A dog runs over a green meadow.", "length")
    assert judge(GOOD, "stop", FILTERS, max_words=14) == (GOOD, "stop")


def test_thresholds():
    assert judge("A dog.", "stop", Filters(min_words=2)) == ("A dog.", "stop")
    assert judge("No way, says the sign.", "stop", Filters(refusals=("no way",))) == (None, "refused")
    assert judge("so so it is, they say", "stop", Filters(repeats=2)) == (None, "repeated")


@pytest.mark.parametrize(
    ("answer", "finish", "expected"),
    [
        ('["dog", "red  barn", "dog", " "]', "stop", "dog, red barn"),
        ('["dog", "red barn", "gra', "length", "dog, red barn"),
        ('["a \\"b\\"", "c', "length", 'a "b"'),
        ('["dog", "red barn", "gra', "stop", None),
        ("a dog and a barn", "stop", None),
        ('{"objects": ["dog"]}', "stop", "dog"),
        ('{"objects": ["dog"], "colours": ["red"]}', "stop", None),
        ('{"objects": {"dog": 1}}', "stop", None),
        ("[1, 2]", "stop", None),
        ("[]", "stop", ""),
    ],
)
def test_list_of(answer, finish, expected):
    assert list_of(answer, finish) == expected


@given(
    st.lists(st.text("abcdefgh", min_size=1, max_size=6), min_size=1, max_size=6), st.integers(2, 6), st.integers(0, 3)
)
def test_a_loop_is_found_wherever_it_begins(loop, times, words_before):
    before = [f"w{i}" for i in range(words_before)]
    assert repeats(" ".join(before + loop * times + ["end"]), times)


@given(st.lists(st.integers(0, 10**6), unique=True, max_size=60), st.integers(2, 5))
def test_text_of_different_words_is_no_loop(numbers, times):
    assert not repeats(" ".join(f"word{n}" for n in numbers), times)
