"""The languages that are known here, and what their tags, scripts and regions are called."""

from __future__ import annotations

# tag, codes of ISO 639 (members of a macrolanguage included, since some models name these), usual script,
# English name / own name
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
# what a region, a script or a whole tag is called in English
REGIONS = {
    "AR": "Argentina",
    "AT": "Austria",
    "AU": "Australia",
    "BE": "Belgium",
    "BR": "Brazil",
    "CA": "Canada",
    "CH": "Switzerland",
    "CL": "Chile",
    "CN": "China",
    "CO": "Colombia",
    "DE": "Germany",
    "EG": "Egypt",
    "ES": "Spain",
    "FR": "France",
    "GB": "the United Kingdom",
    "HK": "Hong Kong",
    "ID": "Indonesia",
    "IE": "Ireland",
    "IL": "Israel",
    "IN": "India",
    "IR": "Iran",
    "IT": "Italy",
    "JP": "Japan",
    "KR": "South Korea",
    "MA": "Morocco",
    "MO": "Macau",
    "MX": "Mexico",
    "MY": "Malaysia",
    "NL": "the Netherlands",
    "NO": "Norway",
    "PE": "Peru",
    "PK": "Pakistan",
    "PT": "Portugal",
    "RU": "Russia",
    "SA": "Saudi Arabia",
    "SE": "Sweden",
    "SG": "Singapore",
    "TR": "Turkey",
    "TW": "Taiwan",
    "UA": "Ukraine",
    "US": "the United States",
}
SCRIPTS = {"Latn": "Latin", "Cyrl": "Cyrillic", "Arab": "Arabic", "Deva": "Devanagari"}
NAMES = {
    "pt-BR": "Brazilian Portuguese",
    "zh-Hans": "Simplified Chinese",
    "zh-Hant": "Traditional Chinese",
    "en-GB": "British English",
    "en-US": "American English",
}
REPLACED = {  # old or unofficial codes: the tag that replaces them
    "iw": "he",
    "in": "id",
    "jw": "jv",
    "sh": "sr-Latn",
    "pob": "pt-BR",
    "prs": "fa-AF",
    "zhs": "zh-Hans",
    "zht": "zh-Hant",
}
SCRIPT_OF_REGION = {("zh", "TW"): "Hant", ("zh", "HK"): "Hant", ("zh", "MO"): "Hant", ("pa", "PK"): "Arab"}
SAME_LANGUAGE = (frozenset(("no", "nb")),)  # plain "Norwegian" is Bokmål


def _table() -> tuple[dict[str, str], dict[str, str], dict[str, list[str]]]:
    """Tag by code, usual script by tag, names by tag."""
    tags: dict[str, str] = {}
    scripts: dict[str, str] = {}
    names: dict[str, list[str]] = {}
    for line in _TABLE.strip().splitlines():
        tag, others, script, rest = line.split(" ", 3)
        tags |= dict.fromkeys([tag, *others.replace("-", "").split(",")], tag)
        scripts[tag], names[tag] = script, rest.split(" / ")
    tags.pop("", None)
    return tags, scripts, names


TAGS, USUAL_SCRIPT, TITLES = _table()
