"""Languages by BCP 47 tags, as everybody writes them: pt-BR, pt_BR, por, zh-CN, zh-Hant, iw, no; and which of a model's
codes one means.

Pure functions over one table; the models' own lists of codes stay with the models.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from ccr_dist.errors import ConfigError

# tag, ISO 639-3 (and the members of a macrolanguage that models name instead), usual script, English name / the
# language's own name
_TABLE = """
af afr Latn Afrikaans
ak aka,twi Latn Akan
am amh Ethi Amharic / አማርኛ
ar ara,arb Arab Arabic / العربية
as asm Beng Assamese
az aze,azj Latn Azerbaijani / Azərbaycanca
ba bak Cyrl Bashkir
be bel Cyrl Belarusian / Беларуская
bg bul Cyrl Bulgarian / Български
bm bam Latn Bambara
bn ben Beng Bengali / বাংলা
bo bod,tib Tibt Tibetan / བོད་སྐད་
br bre Latn Breton
bs bos Latn Bosnian / Bosanski
ca cat Latn Catalan / Català
cs ces,cze Latn Czech / Čeština
cy cym,wel Latn Welsh / Cymraeg
da dan Latn Danish / Dansk
de deu,ger Latn German / Deutsch
dz dzo Tibt Dzongkha
ee ewe Latn Ewe
el ell,gre Grek Greek / Ελληνικά
en eng Latn English
eo epo Latn Esperanto
es spa Latn Spanish / Español
et est,ekk Latn Estonian / Eesti
eu eus,baq Latn Basque / Euskara
fa fas,per,pes Arab Persian / فارسی
ff ful,fuv Latn Fulah
fi fin Latn Finnish / Suomi
fil tl,tgl Latn Filipino
fj fij Latn Fijian
fo fao Latn Faroese
fr fra,fre Latn French / Français
ga gle Latn Irish / Gaeilge
gd gla Latn Scottish Gaelic
gl glg Latn Galician / Galego
gn grn Latn Guarani
gu guj Gujr Gujarati / ગુજરાતી
ha hau Latn Hausa
he heb Hebr Hebrew / עברית
hi hin Deva Hindi / हिन्दी
hr hrv Latn Croatian / Hrvatski
ht hat Latn Haitian Creole
hu hun Latn Hungarian / Magyar
hy hye,arm Armn Armenian / Հայերեն
id ind Latn Indonesian / Bahasa Indonesia
ig ibo Latn Igbo
is isl,ice Latn Icelandic / Íslenska
it ita Latn Italian / Italiano
ja jpn Jpan Japanese / 日本語
jv jav Latn Javanese
ka kat,geo Geor Georgian / ქართული
kg kon Latn Kongo
ki kik Latn Kikuyu
kk kaz Cyrl Kazakh / Қазақша
km khm Khmr Khmer / ខ្មែរ
kn kan Knda Kannada / ಕನ್ನಡ
ko kor Hang Korean / 한국어
ks kas Arab Kashmiri
ku kur,kmr Latn Kurdish
ky kir Cyrl Kyrgyz
lb ltz Latn Luxembourgish
lg lug Latn Ganda
li lim Latn Limburgish
ln lin Latn Lingala
lo lao Laoo Lao / ລາວ
lt lit Latn Lithuanian / Lietuvių
lv lav,lvs Latn Latvian / Latviešu
mg mlg,plt Latn Malagasy
mi mri,mao Latn Maori
mk mkd,mac Cyrl Macedonian / Македонски
ml mal Mlym Malayalam / മലയാളം
mn mon,khk Cyrl Mongolian / Монгол
mr mar Deva Marathi / मराठी
ms msa,may,zsm Latn Malay / Bahasa Melayu
mt mlt Latn Maltese
my mya,bur Mymr Burmese / မြန်မာဘာသာ
nb nob Latn Norwegian Bokmål / Norsk bokmål
ne nep,npi Deva Nepali / नेपाली
nl nld,dut Latn Dutch / Nederlands
nn nno Latn Norwegian Nynorsk / Norsk nynorsk
no nor Latn Norwegian / Norsk
ny nya Latn Nyanja
oc oci Latn Occitan
om orm,gaz Latn Oromo
or ori,ory Orya Odia / ଓଡ଼ିଆ
pa pan Guru Punjabi / ਪੰਜਾਬੀ
pl pol Latn Polish / Polski
ps pus,pbt Arab Pashto
pt por Latn Portuguese / Português
quz - Latn Cusco Quechua
rn run Latn Rundi
ro ron,rum,mo Latn Romanian / Română
ru rus Cyrl Russian / Русский
rw kin Latn Kinyarwanda
sa san Deva Sanskrit
sc srd Latn Sardinian
sd snd Arab Sindhi
sg sag Latn Sango
si sin Sinh Sinhala / සිංහල
sk slk,slo Latn Slovak / Slovenčina
sl slv Latn Slovenian / Slovenščina
sm smo Latn Samoan
sn sna Latn Shona
so som Latn Somali
sq sqi,alb,als Latn Albanian / Shqip
sr srp Cyrl Serbian / Српски
ss ssw Latn Swati
st sot Latn Southern Sotho
su sun Latn Sundanese
sv swe Latn Swedish / Svenska
sw swa,swh Latn Swahili / Kiswahili
ta tam Taml Tamil / தமிழ்
te tel Telu Telugu / తెలుగు
tg tgk Cyrl Tajik
th tha Thai Thai / ไทย
ti tir Ethi Tigrinya
tk tuk Latn Turkmen
tn tsn Latn Tswana
tr tur Latn Turkish / Türkçe
ts tso Latn Tsonga
tt tat Cyrl Tatar
ug uig Arab Uyghur
uk ukr Cyrl Ukrainian / Українська
ur urd Arab Urdu / اردو
uz uzb,uzn Latn Uzbek
vi vie Latn Vietnamese / Tiếng Việt
wo wol Latn Wolof
xh xho Latn Xhosa
yi yid,ydd,ji Hebr Yiddish
yo yor Latn Yoruba
yue - Hant Cantonese / 粵語
zh zho,chi,cmn Hans Chinese / 中文
zu zul Latn Zulu
"""
_REGIONS = {
    **{
        "AR": "Argentina",
        "AT": "Austria",
        "AU": "Australia",
        "BE": "Belgium",
        "BR": "Brazil",
        "CA": "Canada",
        "CH": "Switzerland",
    },
    **{"CL": "Chile", "CN": "China", "CO": "Colombia", "DE": "Germany", "EG": "Egypt", "ES": "Spain", "FR": "France"},
    **{
        "GB": "the United Kingdom",
        "HK": "Hong Kong",
        "ID": "Indonesia",
        "IE": "Ireland",
        "IL": "Israel",
        "IN": "India",
        "IR": "Iran",
    },
    **{
        "IT": "Italy",
        "JP": "Japan",
        "KR": "South Korea",
        "MA": "Morocco",
        "MO": "Macau",
        "MX": "Mexico",
        "MY": "Malaysia",
    },
    **{
        "NL": "the Netherlands",
        "NO": "Norway",
        "PE": "Peru",
        "PK": "Pakistan",
        "PT": "Portugal",
        "RU": "Russia",
        "SA": "Saudi Arabia",
    },
    **{"SE": "Sweden", "SG": "Singapore", "TR": "Turkey", "TW": "Taiwan", "UA": "Ukraine", "US": "the United States"},
}
_SCRIPTS = {"Latn": "Latin", "Cyrl": "Cyrillic", "Arab": "Arabic", "Deva": "Devanagari"}
_NAMES = {
    "pt-BR": "Brazilian Portuguese",
    "zh-Hans": "Simplified Chinese",
    "zh-Hant": "Traditional Chinese",
    "en-GB": "British English",
}
_NAMES |= {"en-US": "American English"}
_OLD = {
    "iw": "he",
    "in": "id",
    "jw": "jv",
    "sh": "sr-Latn",
    "pob": "pt-BR",
    "prs": "fa-AF",
    "zhs": "zh-Hans",
    "zht": "zh-Hant",
}
_SCRIPT_OF = {("zh", "TW"): "Hant", ("zh", "HK"): "Hant", ("zh", "MO"): "Hant", ("pa", "PK"): "Arab"}
_NEAR = (frozenset(("no", "nb")),)  # Norwegian without more is Bokmål


def _table() -> tuple[dict[str, str], dict[str, str], dict[str, list[str]]]:
    tags: dict[str, str] = {}
    scripts: dict[str, str] = {}
    names: dict[str, list[str]] = {}
    for line in _TABLE.strip().splitlines():
        tag, others, script, rest = line.split(" ", 3)
        tags |= dict.fromkeys([tag, *others.replace("-", "").split(",")], tag)
        scripts[tag], names[tag] = script, rest.split(" / ")
    tags.pop("", None)
    return tags, scripts, names


_TAGS, _DEFAULT_SCRIPT, _TITLES = _table()


class Language(NamedTuple):
    """A tag in its parts: `language` in its shortest form (de, not deu), script and region "" where they are not
    said.
    """

    language: str
    script: str = ""
    region: str = ""

    def __str__(self) -> str:
        return "-".join(part for part in self if part)

    @property
    def writing(self) -> str:
        """The script: said, or of the region, or the usual one; "" where it is not known."""
        return self.script or _SCRIPT_OF.get((self.language, self.region)) or _DEFAULT_SCRIPT.get(self.language, "")


def parse(tag: str) -> Language:
    """pt_BR, pt-br, por_BR -> pt, BR; eng_Latn -> en, Latn; pt_XX -> pt. ConfigError for what cannot be a language
    tag.
    """
    parts = tag.strip().replace("_", "-").split("-")
    first = parts[0].lower()
    if not (
        first.isascii()
        and first.isalpha()
        and 2 <= len(first) <= 8
        and all(part.isascii() and part.isalnum() for part in parts)
    ):
        raise ConfigError(f"language {tag!r}: expected a BCP 47 tag, such as de, pt-BR or zh-Hant")
    language, script, region = (*_OLD.get(first, first).split("-"), "", "")[:3]
    if len(script) == 2:
        script, region = "", script
    for part in parts[1:]:
        if len(part) == 4 and part.isalpha():
            script = part.title()
        elif (len(part) == 2 and part.isalpha()) or (len(part) == 3 and part.isdigit()):
            region = "" if part.upper() == "XX" else part.upper()
    return Language(_TAGS.get(language, language), script, region)


def normal(tag: str) -> str:
    """The tag as BCP 47 writes it: pt_br -> pt-BR, zho_hant -> zh-Hant, iw -> he."""
    return str(parse(tag))


def same(one: str, other: str) -> bool:
    """Whether two tags mean one language in one script: pt and pt-BR, zh and zh-CN, no and nb; not zh-Hans and zh-Hant,
    not nb and nn.
    """
    return near(one, other) and parse(one).writing == parse(other).writing


def near(one: str, other: str) -> bool:
    """Whether two tags mean one language, in whatever script."""
    a, b = parse(one).language, parse(other).language
    return a == b or {a, b} in _NEAR


def known(tag: str) -> bool:
    """Whether it is the tag of one language that is known here (and of no group, such as ROMANCE or gmw)."""
    try:
        return parse(tag).language in _TITLES
    except ConfigError:
        return False


def name(tag: str) -> str | None:
    """In English, as language models know it: pt_BR -> Brazilian Portuguese, de-AT -> German (Austria). None for an
    unknown language.
    """
    one = parse(tag)
    if one.language not in _TITLES:
        return None
    if (special := _NAMES.get(str(one))) is not None:
        return special
    if one.language == "zh" and (one.region or one.script):
        place = f" ({_REGIONS[one.region]})" if one.region in _REGIONS and one.region != "CN" else ""
        return _NAMES[f"zh-{one.writing}"] + place if f"zh-{one.writing}" in _NAMES else "Chinese"
    about = []
    if one.region:
        about.append(_REGIONS.get(one.region, one.region))
    if one.script and one.script != _DEFAULT_SCRIPT[one.language]:
        about.append(f"{_SCRIPTS.get(one.script, one.script)} script")
    return _TITLES[one.language][0] + (f" ({', '.join(about)})" if about else "")


def titles(tag: str) -> list[str]:
    """What a language calls itself and is called: es -> Spanish, Español; empty for an unknown one."""
    return list(_TITLES.get(parse(tag).language, ()))


def codes() -> list[str]:
    return sorted(_TITLES)


def three(tag: str) -> str:
    """ISO 639-3 of its language: pt-BR -> por; as it is where there is none."""
    language = parse(tag).language
    return next((code for code, tag in _TAGS.items() if tag == language and len(code) == 3), language)


def choose(wanted: str, there: Iterable[str] | Mapping[str, object]) -> tuple[str | None, list[str]]:
    """Which of a model's codes means a language: ("pt-BR", por_Latn ...) -> por_Latn; (None, candidates) where none or
    no single one does.

    A code that is there as it is asked for is taken. Else language and script have to agree (the usual script where
    none is said), and of several codes the one of the region asked for is taken, or the one that names no region.
    """
    names = list(there)
    if wanted in names:
        return wanted, [wanted]
    parsed = {}
    for code in names:
        try:
            parsed[code] = parse(code)
        except ConfigError:
            continue
    asked = parse(wanted)
    written = {code: one for code, one in parsed.items() if asked.writing in ("", one.writing)}
    found = [code for code, one in written.items() if one.language == asked.language]
    found = found or [code for code, one in written.items() if {one.language, asked.language} in _NEAR]
    for regions in ({asked.region}, {""}):
        if len(exact := [code for code in found if parsed[code].region in regions]) == 1:
            return exact[0], found
    return (found[0] if len(found) == 1 else None), found
