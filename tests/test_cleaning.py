"""Stories as they are cleaned: mojibake is repaired, good text stays."""

import pytest

from data.cleaning import clean_story


@pytest.mark.parametrize(
    "broken, good",
    [
        ("â€œHi,â€\x9d said Tom.", "“Hi,” said Tom."),
        ("It was Timâ€™s ball â€“ a red oneâ€¦", "It was Tim’s ball – a red one…"),
        ("cafÃ©, Â£5, naÃ¯ve, Ã\xa0", "café, £5, naïve, à"),
        ("\u00e2\x80\x9cHi\u00e2\x80\x9d", "“Hi”"),
        ("a smile ðŸ˜€", "a smile 😀"),
        ("â™¥ and â„¢", "♥ and ™"),
        ("â€œgoodâ€\x9d and “fine” in a café", "“good” and “fine” in a café"),
        ("Timâ€™s 中 ball", "Tim’s 中 ball"),
    ],
)
def test_mojibake_is_repaired(broken, good):
    assert clean_story(broken) == (good, True)
    assert clean_story(good) == (good, False)


@pytest.mark.parametrize(
    "text",
    [
        "café",
        "“quotes”",
        "“I want a café…”",
        "été…»",
        "“crème brûlée”",
        "\u201cIRM\u00c3\u201d",
        "IRM\u00c3\u2026",
        "\u00abMA\u00c7\u00c3\u00bb",
        "â",
        "Â",
        # Words in capitals, and letters, before what may follow a word.
        "AMANHÃ\xa0é dia",
        "AMANHÃ\xa0!",
        "A MAÇÃ™ é boa",
        "MAÇÃ®, disse",
        "MANHÃ\xadZINHA",
        "IRMÃ¹",
        "CHÂ\xadTEAU",
        "LÂ° 5",
        "«\xa0Â\xa0»",
        "«\xa0â\xa0»",
        "um brandâ™”",
        "a letra Ã\xa0é",
        "co\xadoperate",
        "SÃO PAULO, CAFÉ™, RÉSUMÉ®",
        "â€",
        "ðŸ",
        "ï»",
    ],
)
def test_good_text_stays(text):
    assert clean_story(text) == (text, False)


def test_real_stories_with_broken_quotes_come_back_and_good_ones_stay():
    """As TinyStories has them: the quotes and dashes of a whole story, or those of one beside a good character."""
    for story in ("“Hi,” said Tim’s mom. “It’s late — go…”", "He said, ‘No – ¡nunca!’", "A ♥ and a 🙂 for “Anna”."):
        broken = "".join(bytes([byte]).decode("cp1252", "ignore") or chr(byte) for byte in story.encode())
        assert clean_story(broken) == clean_story(story.encode().decode("latin-1")) == (story, True)
        assert clean_story(f"über {broken}") == (f"über {story}", True)
        assert clean_story(story) == (story, False)


def test_a_word_in_capitals_stays_beside_mojibake_that_is_repaired():
    assert clean_story("Timâ€™s café: AMANHÃ\xa0é dia") == ("Tim’s café: AMANHÃ\xa0é dia", True)


def test_every_character_of_windows_1252_comes_back():
    for code in range(0xA0, 0x3000):
        good = chr(code) * 2 + "— x"
        raw = good.encode()
        broken = "".join(bytes([byte]).decode("cp1252", "ignore") or chr(byte) for byte in raw)
        assert clean_story(broken)[0] == good.strip()


def test_white_space_is_stripped_and_not_a_repair():
    assert clean_story("\n One day. \n") == ("One day.", False)
    assert clean_story(" \n\t") == ("", False)
