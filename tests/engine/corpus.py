"""Texts that tell tokenizers apart."""

from __future__ import annotations

import random
import unicodedata

TEXTS = (
    "",
    " ",
    "Hello, world! It's what we'd call a test; they'll see, I'm sure you've been there.",
    "IT'S WHAT WE'D CALL; THEY'LL, I'M, YOU'VE, WE'RE 'tis 'Twas o'clock '' '''s 'ſ x'ſ",
    "1 12 123 1234 12345 123456 1234567 1,234.5e-6 0x1F 3.14159 2024-11-24 v1.2.3 a1b22c333d4444",
    "x²+y³=½ ⅷ ① ٣٤٥ १२३४ 〇一二三 ¼½¾ 𝟘𝟙𝟚𝟛 ೧೨೩",
    "  leading and trailing  ",
    "a  b   c    d\te\t\tf\n\ng\n\n\nh \n i\r\nj\r\rk\r\n\r\nl \t \n \t m",
    "\n",
    "\n\n\n   \n\t\n x",
    "x   \n   y   \n\n   z!\n\n!\r\n!!\r\n?",
    "tabs\vand\ffeeds\x1c\x1d\x1e\x1f\x85nel\xa0nbsp\u2028ls\u2029ps\u3000ideographic\u200bzwsp\u202fnn\u1680og",
    "def f(x: int) -> str:\n    if x >= 10:\n\t\treturn f'{x!r:>{10}}'  # a comment\n    return \"\"\n",
    '#include <stdio.h>\nint main(void) {\n\tfor (int i=0;i<10;++i) printf("%d\\n", i);\n\treturn 0;\n}\n',
    "<html><body class='a'>&amp;</body></html> {{ jinja }} {% if %} ${HOME} $(cmd) `tick` ~/.s \\d+\\.\\w*",
    '{"a": [1, 2.5, null, true], "b": {"c": "\\u00e9"}}',
    "Zażółć gęślą jaźń; Ünïcödé; naïve café; ça; œuvre; Straße; ŒŸ; Đđ; İıŞş",
    "e\u0301 a\u0308\u0323 n\u0303 \u0301 x\u0301\u0302\u0303\u0304 1\u0301 !\u0301 Z͑ͫ̓a̴l̷g̶o̵",
    "Привет, мир! Ελληνικά γλώσσα ქართული հայերեն",
    "שלום עולם مرحبا بالعالم سلام‌دنیا \u200fRTL\u200e \u202eabc\u202c",
    "你好，世界！今天天气很好。日本語のテキストとカタカナ、한국어 텍스트 조합 ㅎㅏㄴ 漢字kanji混在123",
    "हिन्दी में लिखा தமிழ் ภาษาไทยไม่มีช่องว่าง ខ្មែរ ລາວ မြန်မာ བོད་ཡིག ᠮᠣᠩᠭᠣᠯ አማርኛ",
    "😀😃🇩🇪🇯🇵👩‍👩‍👧‍👦👍🏽❤️🏳️‍🌈🧑🏿‍🚀 a😀b 😀 😀😀\n☃︎☃️ #️⃣ 🫠🫨",
    "∀x∈ℝ: ⌈x⌉ = −⌊−x⌋ ∧ α∧¬β ⇒ ∑∏∫√∞ ≠≤≥ ÷×±∓ ‰ € £ ¥ ₿ © ® ™ § ¶ † ‡ • … – — ‘’ “” «» ‹›",
    "\x01\x02\x03\x04\x05\x06\x07\x08\x0e\x0f\x10\x13\x14\x16\x1b[31mred\x1b[0m\x7f\x80\x9f",
    "\ufeffBOM \ufffd \ufffe \uffff \U0010ffff \ue000 \U000f0000 \U000e0041 \U0001f1e6",
    "𐍈𐌰𐌽 𒀀𒁀 𓀀𓁀 𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𠜎𠜱𠝹 🀄 𞤀𞤣",
    "ＡＢＣ１２３！ ﬁ ﬂ ﷺ Ǆǅǆ ʰʱ ˇ ꙮ ꟷ",
    "<|im_start|>user\nHi<|im_end|> <|endoftext|><repo_name> <|im_start <|im_end|",
    "https://example.org/a/b?c=d&e=f#g user@example.org C:\\dir\\file.txt /usr/lib --flag=1 -x",
    "snake_case camelCase PascalCase SCREAMING_CASE kebab-case a.b.c a::b->c[d](e){f}<g>",
    "!!!??? ... ,,, ;;; --- === *** ___ ### $$$ %%% ^^^ &&& ((( ))) !?!?.,.,",
    "a" * 5000,
    " " * 5000,
    " " * 5000 + "x",
    "\n" * 3000 + "x",
    " \n" * 2000,
    "7" * 5000,
    "!" * 5000,
    "é" * 3000,
    "漢" * 3000,
    "😀" * 2000,
    "\u0301" * 3000,
    "ab" * 3000 + " cd" * 1000,
)

# Alphabets whose members meet at every kind of word boundary.
_ALPHABETS = (
    "ab AB 12'sS\n\r\t!.<|>_",
    " \n\r\t\u00a0\u3000\v\f\x85x!1",
    "'sStTrReEvVmMlLdDſ x",
    "0123456789٣½²a ,.",
    "aé漢字한😀\u0301\u200d🏽שل 1!\n",
    "<|im_startend>ofx rpo",
)


def random_texts(count: int, *, seed: int) -> list[str]:
    """`count` short texts: half of an alphabet that stresses the boundaries, half of any code point."""
    draw = random.Random(seed)
    texts = []
    for i in range(count):
        length = draw.randint(1, 40)
        if i % 2:
            texts.append("".join(draw.choices(draw.choice(_ALPHABETS), k=length)))
        else:
            texts.append("".join(_any_character(draw) for _ in range(length)))
    return texts


def _any_character(draw: random.Random) -> str:
    limit = draw.choice((0x80, 0x800, 0x3000, 0x10000, 0x20000))
    char = chr(draw.randrange(1, limit))
    # Unassigned code points are left out: whether they're letters depends on the year of a library's tables.
    return char if unicodedata.category(char) not in ("Cs", "Cn") else " "
