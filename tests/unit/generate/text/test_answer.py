"""The answer inside what a model said; what is clean stays as it is, in every script; sentence ends."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ccr_dist.generate.text.answer import REMOVED, clean
from ccr_dist.generate.text.sentences import TERMINALS, ends, unspaced, whole

SOURCE, RED = "a red car", "ein rotes Auto"
NAMES = ["German", "Deutsch"]

AROUND = {
    "thinking": [
        "<think>The user wants German. Red is rot.</think>\n\n{}",
        "The user wants German. Red is rot.\n</think>\n\n{}",
        "<think>\nIs it <think> or thought?\n</think>{}",
        "<Thinking>hm</Thinking>\n{}",
        "[THINK]hm[/THINK]{}",
        "◁think▷hm◁/think▷{}",
        "<seed:think>hm</seed:think>{}",
        "<reasoning>hm</reasoning>{}",
        "<|begin_of_thought|>hm<|end_of_thought|>{}",
        "<|START_THINKING|>hm<|END_THINKING|>{}",
        "<|channel>thought\nhm<channel|>{}",
        "<unused94>thought\nhm<unused95>{}",
        "<|inner_prefix|>hm<|inner_suffix|>{}",
        "<|channel|>analysis<|message|>We need it.<|end|><|start|>assistant<|channel|>final<|message|>{}<|return|>",
        "analysisWe need it in German.assistantfinal{}",
        "**Thinking:** hm\n\n**Answer:** {}",
        "Thought: it is red\nFinal answer: {}",
        "Here is my thought process:\nhm\nHere is my response:\n{}",
    ],
    "special": [
        "{}<|im_end|>\n<|im_start|>user\nand now?",
        "<s>{}</s>",
        "{}<|endoftext|>",
        "<start_of_turn>model\n{}<end_of_turn>",
        "<|im_start|>assistant\n{}",
        "assistant\n\n{}",
        "<|START_RESPONSE|>{}<|END_RESPONSE|>",
        "{}<｜end▁of▁sentence｜>",
        "[INST] {} [/INST]",
        "<answer>{}</answer>",
        "<translation>\n{}",
        "\\boxed{{{}}}",
        "{} \ud83d",
        "\u200b{}\ufeff",
        "{}</translation>",
        "user\nTranslate it\nassistant\n{}",
        "ASSISTANT: {}",
        "{}\nUSER: and now?",
        "{}### Human: and now?",
        "<pad> {}",
    ],
    "fence": [
        "```\n{}\n```",
        "```text\n{}",
        "`{}`",
        "**{}**",
        "~~~\n{}\n~~~",
        "- {}",
        "> {}",
        "<b>{}</b>",
        '{{"translation": "{}"}}',
    ],
    "preamble": [
        "Here is the translation:\n\n{}",
        "Here's the German translation: {}",
        "Sure! Here is the translation of the caption in German:\n{}",
        "Sure, here is the translation: {}",
        "Certainly! {}",
        "Sure, I can help! This is the translation:\n{}",
        "The image caption translated into German is:\n\n{}",
        "German: {}",
        "Deutsch: {}",
        "**German:** {}",
        "In German: {}",
        "Translation: {}",
        "Translation (German): {}",
        "German translation: {}",
        "Caption (German): {}",
        "Answer: {}",
        "### Translation\n{}",
        "Übersetzung: {}",
        "Hier ist die Übersetzung: {}",
        "Die Übersetzung lautet: {}",
        "Voici la traduction : {}",
        "Traducción: {}",
        "Aquí está la traducción al alemán:\n\n{}",
        "Aqui está a tradução: {}",
        "Ecco la traduzione: {}",
        "Конечно! Вот перевод:\n\n{}",
        "以下是翻译：\n{}",
        "好的，以下是德语翻译：{}",
        "翻译：{}",
        "もちろんです！以下が翻訳です：\n{}",
        "번역: {}",
        "अनुवाद: {}",
        "إليك الترجمة:\n{}",
        "Çeviri: {}",
        "Bản dịch: {}",
        "Here you go: {}",
        "It translates to: {}",
        "A red car -> {}",
        "a red car = {}",
        "a red car\n{}",
        "English: a red car\nGerman: {}",
    ],
    "note": [
        '{}\n\n(Note: "Auto" is neuter.)',
        "{} (Note: informal)",
        "{} (Literal translation: a red car)",
        "{}\n\nNote: this is informal.\nAnd more.",
        "{}\n\n*Hinweis: so sagt man*",
        "{}\n\n---\n\n**Explanation:**\n- rot = red",
        "{}\n\nLet me know if you need more!",
        "{}\n\nI hope this helps!",
        "{}（注：红色）",
        "{} (Nota: informal)",
        "{}\n(Примечание: разговорное)",
        '{}\n\nThe word "rot" means red.',
        "{}\n\noder\n\nein roter Wagen",
        "1. {}\n2. ein roter Wagen",
    ],
    "quotes": [
        '"{}"',
        "'{}'",
        "“{}”",
        "”{}”",
        "„{}“",
        "„{}”",
        "»{}«",
        "«{}»",
        "‹{}›",
        "‚{}‘",
        "「{}」",
        "『{}』",
        "《{}》",
        "〝{}〟",
        '"{}".',
    ],
}


@pytest.mark.parametrize(("what", "form"), [(what, form) for what, forms in AROUND.items() for form in forms])
def test_what_is_around_a_translation_is_removed_and_named(what: str, form: str) -> None:
    said = form.format(RED)
    text, removed = clean(said, source=SOURCE, names=NAMES)
    assert text == RED and what in removed and set(removed) <= REMOVED.keys()
    assert clean(text, source=SOURCE, names=NAMES) == (RED, ())


def test_layers_come_off_one_after_the_other() -> None:
    said = (
        '<think>hm</think>\nSure! Here is the translation:\n\n```\n"ein rotes Auto"\n```\n\n(Note: informal)<|im_end|>'
    )
    assert clean(said, source=SOURCE) == (RED, ("thinking", "special", "preamble", "note", "fence", "quotes"))


@pytest.mark.parametrize(
    "said",
    [
        "<think>\nThe user wants",
        "[THINK] so",
        "analysisWe need",
        "<|channel|>analysis<|message|>We",
        "so it is</think>",
    ],
)
def test_thinking_alone_is_no_answer(said: str) -> None:
    assert clean(said, source=SOURCE) == ("", ("thinking",))


@pytest.mark.parametrize(
    ("source", "translation"),
    [
        ('"Stop" and "Go"', "„Halt“ und „Los“"),
        ('"Stop the car!"', "„Halt an!“"),
        ('"Stop" sign', "„Halt“-Schild"),
        ("Spanish: un coche", "Spanisch: ein Auto"),
        ("Note: wet paint", "Hinweis: frisch gestrichen"),
        ("Sure! A dog", "Klar! Ein Hund"),
        ("a car (note: broken)", "ein Auto (Hinweis: kaputt)"),
        ("a desk (notes, pens, a lamp)", "ein Tisch (Notizen, Stifte, eine Lampe)"),
        ("a [MASK] token <s>", "ein [MASK] Zeichen <s>"),
        ("rock 'n' roll", "'s ist Rock 'n' Roll"),
        ("it's 'good'", "'s ist 'gut'"),
        ("a man <thinking> aloud", "ein Mann <thinking> laut"),
        ("Of course, a cat", "Natürlich, eine Katze"),
        ("5:30 on a clock", "5:30 auf einer Uhr"),
        ("the caption of a picture", "die Bildunterschrift eines Bildes"),
        ("a translation of a book", "eine Übersetzung eines Buchs"),
        ("Assistant: hello", "Assistent: hallo"),
        ("- a list", "- eine Liste"),
        ("{x}", '{"x": "y"}'),
        ("<b>bold</b>", "<b>fett</b>"),
        ("a red car", "a red car"),
        ("a b*c* d", "ein b*c* d"),
    ],
)
def test_what_belongs_to_a_translation_stays(source: str, translation: str) -> None:
    assert clean(translation, source=source, names=NAMES) == (translation, ())


@pytest.mark.parametrize(
    "text",
    [
        '"STOP"',
        'The sign reads "Here is the deal: two for one". A man looks at it.',
        "A desk with notes (notes, pens) and a lamp.\nOn it lies a book.",
        "Sure-footed goats climb a rock: a steep one.",
        "Red text: SALE. Below it: a price.",
        'A poster says:\n"Keep calm"',
        'A street at night.\nThe word "STOP" is painted on it.',
        "OK Corral, a wooden gate.",
        "Two people <3 each other, 5 < 6 and 7 > 2.",
        "图片里写着：“以下是菜单”。",
        "写真：山と川。",
    ],
)
def test_what_belongs_to_a_description_stays(text: str) -> None:
    assert clean(text) == (text, ())


@pytest.mark.parametrize(
    ("said", "text"),
    [
        ("Here is a detailed description of the image:\n\nA dog runs.", "A dog runs."),
        ("Sure! A dog runs.", "A dog runs."),
        ("**Description:** A dog runs.", "A dog runs."),
        ('"A dog runs."', "A dog runs."),
        ("A dog runs.\n\nLet me know if you need more.", "A dog runs."),
        ("A dog runs. I hope this description helps!", "A dog runs."),
        ("```json\n[1]\n```", "[1]"),
        ("Sure, here's what I see: A dog runs.", "A dog runs."),
        ("图片描述：一只狗。", "一只狗。"),
        ("Description de l'image : un chien.", "un chien."),
        ("A dog runs.\n\nHuman: What else?", "A dog runs."),
        ("以下是图片的描述：\n一只狗。", "一只狗。"),
    ],
)
def test_what_is_around_a_description_is_removed(said: str, text: str) -> None:
    assert clean(said)[0] == text


def test_marks_that_the_limit_cut_off_are_not_waited_for() -> None:
    assert clean('"Ein rotes Auto. Es', source=SOURCE, cut=True) == ("Ein rotes Auto. Es", ("quotes",))
    assert clean('"Halt" sagt das', source=SOURCE, cut=True) == ('"Halt" sagt das', ())
    assert clean("Ein Auto (Note: it", source=SOURCE, cut=True) == ("Ein Auto", ("note",))


SCRIPTS = {
    "Latin": ("aàâäbcçdeéèfghijklłmnñoöpqrsßtuüvwxyzž", ".!?"),
    "Cyrillic": ("абвгдеёжзийклмнопрстуфхцчшщъыьэюяіїґ", ".!?"),
    "Greek": ("αβγδεζηθικλμνξοπρστυφχψωάέήί", ".!;"),
    "Armenian": ("աբգդեզէըթժիլխծկհձղճմյն", "։"),
    "Hebrew": ("אבגדהוזחטיכלמנסעפצקרשת", ".?"),
    "Arabic": ("ابتثجحخدذرزسشصضطظعغفقكلمنهوي", ".؟"),
    "Urdu": ("ابپتٹجچحخدڈذرڑزژسشکگلمنوہی", "۔؟"),
    "Devanagari": ("कखगघचछजझटठडढणतथदधनपफबभमयरलवशषसहािीुूेैोौ्", "।?"),
    "Bengali": ("কখগঘচছজঝটঠডঢণতথদধনপফবভমযরলশষসহািীুূে", "।?"),
    "Tamil": ("கஙசஞடணதநபமயரலவழளறன", ".?"),
    "Ethiopic": ("ሀለሐመሠረሰሸቀበተቸኀነኘአ", "።፧"),
    "Khmer": ("កខគឃងចឆជឈញដឋឌឍណតថទធន", "។៕"),
    "Myanmar": ("ကခဂဃငစဆဇဈညတထဒဓနပဖ", "။၊"),
    "Thai": ("กขคงจฉชซญดตถทธนบปผฝพฟมยรลวสหอฮ", "ๆ"),
    "Hangul": ("가나다라마바사아자차카타파하고노도로", ".?"),
    "Kana": ("あいうえおかきくけこさしすせそアイウエオ", "。！"),
    "Han": ("一二三人大天山水火木金土日月狗猫树车红", "。？"),
}


@st.composite
def clean_texts(draw: st.DrawFn) -> str:
    """Sentences of invented words in one script; some hold a quotation, a bracket or a number."""
    letters, marks = SCRIPTS[draw(st.sampled_from(sorted(SCRIPTS)))]
    words = draw(st.lists(st.text(letters, min_size=3, max_size=9), min_size=2, max_size=12))
    odd = draw(st.sampled_from(["", "“{}”", '"{}"', "({})", "«{}»", "「{}」", "{} 3,5", "{}-{}"]))
    if odd:
        words.insert(1, odd.replace("{}", words[0]))
    return " ".join(words) + draw(st.sampled_from([*marks, ""]))


@given(clean_texts(), st.booleans())
def test_a_clean_answer_in_any_script_passes_unchanged(text: str, translated: bool) -> None:
    assert clean(text, source=SOURCE * translated, names=NAMES) == (text, ())


PIECES = st.sampled_from(
    [
        *(form for forms in AROUND.values() for form in forms),
        "{}",
        "{} {}",
        "{}\n\n{}",
        "“{}",
        "<think>{}",
        "{}</s>",
        "[{}]",
    ]
)


@given(
    st.lists(PIECES, max_size=4),
    st.one_of(clean_texts(), st.text()),
    st.sampled_from(["", SOURCE, '"a"', "Note: x"]),
    st.booleans(),
)
def test_cleaning_is_idempotent(forms: list[str], text: str, source: str, cut: bool) -> None:
    for form in forms:
        text = form.replace("{{", "{").replace("}}", "}").replace("{}", text)
    once, _ = clean(text, source=source, names=NAMES, cut=cut)
    assert clean(once, source=source, names=NAMES, cut=cut) == (once, ())
    assert len(once) <= len(text)


@pytest.mark.parametrize(
    "piece",
    [
        "(note: ",
        "<think>",
        "“",
        "Here is the ",
        ": ",
        "\n",
        "```",
        "*",
        " ",
        "translation is ",
        "[(",
        "ab c",
        "。",
        "<|",
        "note\n",
    ],
)
def test_long_odd_texts_take_no_time(piece: str) -> None:
    """Patterns that look back over a text again and again would take minutes (pytest's own limit ends them)."""
    clean(piece * (2000 // len(piece)), source=SOURCE, names=NAMES)
    clean(piece * (2000 // len(piece)) + "x", cut=True)


# -- sentences


def test_sentence_ends_are_those_of_unicode() -> None:
    regex = pytest.importorskip("regex", reason="regex is not installed (comes with transformers)")
    unicode = set(
        regex.findall(
            r"\p{Sentence_Terminal}", "".join(chr(code) for code in range(0x20000) if not 0xD800 <= code < 0xE000)
        )
    )
    assert unicode <= TERMINALS and len(TERMINALS - unicode) == 10


@pytest.mark.parametrize("script", sorted(SCRIPTS))
def test_a_text_that_was_cut_keeps_its_whole_sentences(script: str) -> None:
    letters, marks = SCRIPTS[script]
    first = letters[:4] + ("" if script == "Thai" else marks[0])
    assert whole(f"{first} {letters[4:8]}") == first
    assert not whole(letters[:6])


def test_where_sentences_end() -> None:
    assert [*ends('It is 3.5 m. "So?" he asked… yes!')] == [12, 18, 28, 33]
    assert whole("一只狗。它的后面有") == "一只狗。" and whole("「狗。」它") == "「狗。」"
    assert whole("สุนัขวิ่ง อยู่ในสวน") == "สุนัขวิ่ง"
    assert (
        unspaced("狗")
        and unspaced("สุนัข")
        and unspaced("iPhoneを持つ人")
        and not unspaced("a sign 停 in a street")
        and not unspaced("개 한 마리")
    )
