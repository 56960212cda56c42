"""What models say around their answers, in common target languages: parts of regular expressions for `remarks.py` and
`answer.py`.

Each constant is a list of alternatives, without a group around it. A new phrase changes what is removed, and so needs a
new `answer.VERSION`.
"""

from __future__ import annotations

SURE = (  # agreement
    r"sure(?: thing)?|certainly|of course|absolutely|okay|ok|alright|great|no problem|gladly|with pleasure|gerne|"
    r"natürlich|selbstverständlich|sicher|klar|claro(?: que sí)?|por supuesto|desde luego|bien sûr|certainement|"
    r"avec plaisir|volontiers|certo|certamente|com certeza|конечно|разумеется|当然(?:可以)?|當然(?:可以)?|好的|没问题|"
    r"沒問題|もちろん(?:です)?|はい|承知(?:いた)?しました|물론(?:입니다|이죠)?|네|بالتأكيد|بالطبع|حسنا|البته|حتما|"
    r"ज़रूर|बिल्कुल|অবশ্যই|یقیناً|ضرور|tabii(?: ki)?|elbette|oczywiście|jistě|samozřejmě|natuurlijk|zeker|självklart|"
    r"visst|selvfølgelig|tottakai|hakika|bien entendu|desigur|sigur|звісно|звичайно|φυσικά|βεβαίως|בטח|כמובן|"
    r"chắc chắn(?: rồi)?|vâng|แน่นอน(?:ค่ะ|ครับ)?|tentu(?: saja)?|baik"
)
HERE = (  # the answer is announced
    r"here(?:'s|’s| is| are)|below (?:is|are)|the following(?: is| are)?|based on [^:：\n]{1,60}|voici|"
    r"aquí (?:está|tienes|tiene)|aqui (?:está|vai)|hier ist|ecco|вот|以下(?:是|为|為|は|が)?|下面是|这是|這是|"
    r"こちら(?:が|は)|다음은|여기|إليك(?:م)?|فيما يلي|در زیر|यहाँ|यहां|নিচে|یہ(?:اں)?|işte|aşağıda|oto|zde je|tady je|"
    r"hier is|här är|her er|tässä on|đây là|dưới đây là|นี่คือ|berikut(?: adalah)?|ini(?:lah)? adalah|iată|ось|ето|"
    r"εδώ είναι|ακολουθεί|הנה|íme"
)
ANSWERS = (  # what an answer is called
    r"translat\w*|captions?|descriptions?|answers?|versions?|responses?|output|lists?|json(?: array)?|objects|"
    r"attributes|summary|what i (?:can )?see|breakdown|"
    r"traducci\w*|tradu[cç][aã]o|traduction|tradu\w*|übersetz\w*|traduzion\w*|перевод\w*|翻译\w*|"
    r"翻譯\w*|译文|譯文|翻訳\w*|訳文?|번역\w*|ترجم\w*|الترجمة|अनुवाद\w*|অনুবাদ\w*|மொழிபெயர்ப்பு\w*|అనువాదం|çeviri\w*|"
    r"tercüme\w*|tłumacz\w*|překlad\w*|vertaling\w*|översättning\w*|overs[æe]t\w*|käännös\w*|bản dịch|คำแปล|แปล\w*|"
    r"terjemahan\w*|traducere\w*|переклад\w*|превод\w*|μετάφραση|תרגום|fordítás\w*|vertimas|tõlge|tulkojum\w*|"
    r"prijevod|tafsiri|beschreibung|bildunterschrift|legenda|légende|descri[pcçz]\w*|описани\w*|подпис\w*|описание|"
    r"描述|説明|标题|標題|キャプション|설명\w*|캡션|الوصف|وصف|विवरण"
)
DESCRIPTIONS = (  # what a description is called
    r"description de l['’]image|descripción(?: de la imagen)?|descrição(?: da imagem)?|(?:bild)?beschreibung(?: des"
    r" bildes)?|"
    r"descrizione(?: dell['’]immagine)?|описание(?: изображения)?|"
    r"(?:图片|图像|圖片|画像の?)?(?:描述|説明文?)|이미지 설명|وصف الصورة|चित्र (?:का )?विवरण"
)
NOTE = (  # what begins a note about the answer
    r"(?:please )?notes?|n\.\s?b\.|nb|remarks?|translator['’]?s? notes?|translation notes?|explanations?|"
    r"literal(?:ly)?(?: translation)?|alternatives?|alternatively|breakdown|pronunciation|transliteration|"
    r"romanization|pinyin|hinweis|anmerkung(?:en)?|erklärung|wörtlich|alternativ|notas?|observaci[oó]n|explicaci[oó]n|"
    r"literalmente|alternativa(?:mente)?|remarques?|explication|littéralement|observação|explicação|osservazione|"
    r"spiegazione|letteralmente|примечани[ея]|пояснение|дословно|буквально|注(?:意|释|釋|記|意点)?|註|说明|說明|备注|"
    r"備註|解释|訳注|補足|直訳|주(?:의|석)?|참고|설명|직역|ملاحظة|ملحوظة|توضیح|نوٹ|नोट|टिप्पणी|ध्यान दें|দ্রষ্টব্য|"
    r"நோட்|குறிப்பு|గమనిక|opmerking|letterlijk|uwaga|dosłownie|poznámka|doslova|obs|anm(?:ärkning)?|bemærk(?:ning)?|"
    r"merk(?:nad)?|huom(?:autus|io)?|megjegyzés|açıklama|dipnot|ghi chú|lưu ý|หมายเหตุ|catatan|notă|примітка|"
    r"забележка|σημείωση|הערה|pastaba|märkus|piezīme|napomena|opomba"
)
BEHIND = (  # what else models say after an answer
    r"i hope (?:this|that|it)|hope this helps|let me know|please let me|feel free|would you like|is there anything|"
    r"do you (?:want|need|have)|if you(?:'d| would| need| have| want|['’]re)"
)
BEHIND_TRANSLATIONS = (
    r"(?:in )?this (?:translation|caption|sentence)|the (?:translation|word|phrase|term)\b|"
    r"i (?:have |['’]ve )?(?:translated|used|chose|kept)"
)
# opening mark: marks that may close it; languages pair the same marks in different ways
QUOTES = {
    **{'"': '"', "'": "'", "`": "`'", "“": "”“", "”": "”", "„": '“”„"', "‟": "”", "‘": "’‘", "’": "’"},
    **{"‚": "‘’‚'", "‛": "’", "«": "»", "»": "«»", "‹": "›", "›": "‹›", "「": "」", "『": "』", "《": "》"},
    **{"〈": "〉", "〝": "〞〟", "＂": "＂", "＇": "＇", "｢": "｣", "❝": "❞", "❛": "❜", "⹂": "”", "﹁": "﹂"},
    **{"﹃": "﹄"},
}
