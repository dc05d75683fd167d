"""Text that a tokenizer has to give back: every script and sign that stories are written in."""

from __future__ import annotations

import functools
import unicodedata

SENTENCES = (
    "Once upon a time, there was a girl named Lily.\nShe said, \"Don't go!\"  I'll  stay, they've gone; it's 3,141.59.",
    "def f(x):\n\treturn x[0]   # <b>tag</b> & {a: 1} \\n ~ ^ | @ $ % * + = _ `\n\n\n    four spaces , and . a ! b ?",
    "naïve café, Straße, Ærø, İstanbul, žluťoučký kůň, Łódź, tiếng Việt, e\u0301 o\u0308 (combined), ﬁne, ½, x², ™",
    "Жила-была девочка. Μια φορά κι έναν καιρό. Եղել է մի աղջիկ. ერთი გოგონა.",
    "היה היתה ילדה. كانت هناك فتاة اسمها ليلى، سعيدة! ایک لڑکی تھی۔ ܫܠܡܐ ދިވެހި",
    "एक समय की बात है। এক ছিল মেয়ে। ਇੱਕ ਕੁੜੀ। એક છોકરી. ஒரு பெண். ఒక అమ్మాయి. ಒಂದು ಹುಡುಗಿ. ഒരു പെൺകുട്ടി. එක් දැරියක්.",
    "กาลครั้งหนึ่ง ມີເດັກຍິງ တစ်ခါက བོད་ཡིག ក្មេងស្រី ᠮᠣᠩᠭᠣᠯ አንዲት ልጅ ᏣᎳᎩ ᐃᓄᒃ",
    "从前有一个小女孩。むかしむかし、カタカナ ｱｲｳ。옛날 옛적에 한글 ᄒ\u1161ᆫ. 𠮷野家 ＡＢＣ",
    "🙂 👩‍👩‍👧 🏴󠁧󠁢󠁥󠁮󠁧󠁿 👍🏽 ❤️ ♥ → ∑ ∞ ≠ √ ♪ ☂ “quotes” ‘single’ «guillemets» „low“ — – … · • ′ € £ ¥ 𝒜 𝔸",
    "no-break\xa0space, thin\u2009space, ideographic\u3000space, zero\u200bwidth, soft\xadhyphen, line\u2028separator, \ufffd",
)
# The sign that sentencepiece writes for a space: its tokenizers have no other way to write the sign itself.
SPACE_SIGN = "\u2581"


@functools.cache
def probe() -> tuple[str, ...]:
    """Texts without outer white space, as cleaned stories are: sentences, and assigned characters of all scripts.

    Together they hold every byte that UTF-8 needs for assigned characters, but for control characters.
    """
    characters = [chr(point) for point in (*range(0x20, 0x590), *range(0x590, 0x31350, 7)) if _is_written(chr(point))]
    words = ["".join(characters[start : start + 8]) for start in range(0, len(characters), 8)]
    lines = [f"a {' '.join(words[start : start + 16])} b" for start in range(0, len(words), 16)]
    return (*SENTENCES, *lines)


def _is_written(character: str) -> bool:
    return unicodedata.category(character) not in ("Cc", "Cn", "Co", "Cs") and character != SPACE_SIGN


def same_text(one: str, other: str) -> bool:
    """Whether two texts are the same but for how accents are composed (canonical equivalence, Unicode 15 §3.7)."""
    return one == other or unicodedata.normalize("NFC", one) == unicodedata.normalize("NFC", other)
