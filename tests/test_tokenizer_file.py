"""Tokenizers in files are judged by what we rely on: text comes back, always the same, and never as a special id."""

import json

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from config import TrainingConfig, UserError
from data import load_data
from data.builtin_stories import builtin_stories
from data.cleaning import END_OF_TEXT
from data.token_cache import cleaned_and_encoded
from data.tokenizer import load_tokenizer
from data.tokenizer_file import BYTE_CHARACTERS, TokenizerFile, as_tokenizer_json
from data.tokenizer_probe import SPACE_SIGN, probe

TEXTS = ["Once upon a time, Lily said: “Café?”", "日本 🦊  two spaces\n\n\tTab", f"a {END_OF_TEXT} b </s> <pad>"]


@pytest.fixture(scope="module")
def content() -> bytes:
    return as_tokenizer_json(load_tokenizer("builtin"), END_OF_TEXT)


@pytest.fixture
def changed(content, tmp_path):
    """The built-in tokenizer with a change, as a file's path."""

    def write(change):
        tokenizer = Tokenizer.from_str(content.decode())
        change(tokenizer)
        tokenizer.save(str(tmp_path / "tokenizer.json"))
        return tmp_path / "tokenizer.json"

    return write


def trained(**options) -> Tokenizer:
    """Byte-level BPE of 40 stories."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=[END_OF_TEXT], show_progress=False, **options)
    tokenizer.train_from_iterator(builtin_stories(40), trainer)
    return tokenizer


def llama(path, legacy=False, end="</s>", byte_fallback=True):
    """As sentencepiece makes them: a sign for the space, one put before each text, bytes where there is no piece."""
    pieces = Tokenizer(models.BPE())
    pieces.pre_tokenizer = pre_tokenizers.Metaspace()
    pieces.train_from_iterator(builtin_stories(40), trainers.BpeTrainer(vocab_size=300, show_progress=False))
    model = json.loads(pieces.to_str())["model"]
    names = ["<unk>", "<s>", end, *(f"<0x{byte:02X}>" for byte in range(256)), *model["vocab"]]
    vocab = {name: number for number, name in enumerate(names)}
    merges = [tuple(merge) for merge in model["merges"]]
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, byte_fallback=byte_fallback, unk_token="<unk>"))
    if legacy:
        steps = [normalizers.Prepend(SPACE_SIGN), normalizers.Replace(" ", SPACE_SIGN)]
        tokenizer.normalizer = normalizers.Sequence(steps)
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE_SIGN, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names[:3]])
    tokenizer.save(str(path))
    return path


def load(path) -> TokenizerFile:
    return load_tokenizer(str(path))


def refusal(path) -> str:
    with pytest.raises(UserError) as refused:
        load(path)
    assert str(path) in str(refused.value) and "\n" not in str(refused.value)
    return str(refused.value)


def assert_keeps(tokenizer: TokenizerFile) -> None:
    for text in TEXTS:
        ids = tokenizer.encode_ordinary(text)
        assert tokenizer.decode(ids) == tokenizer.prefix.decode() + text
        assert tokenizer.eot_token not in ids and ids == tokenizer.encode_ordinary(text)


def test_the_probe_holds_every_byte_of_assigned_characters_but_control_characters():
    held = {byte for text in probe() for byte in text.encode()}
    never = {0xC0, 0xC1, 0xEE, 0xF1, 0xF2, *range(0xF4, 256)}
    assert held == set(range(256)) - never - (set(range(32)) - {9, 10}) - {127}
    assert all(text == text.strip() for text in probe())


def test_our_own_and_a_trained_one_are_accepted_without_a_word(content, tmp_path):
    (tmp_path / "ours.json").write_bytes(content)
    trained(initial_alphabet=pre_tokenizers.ByteLevel.alphabet()).save(str(tmp_path / "trained.json"))
    for name in ("ours.json", "trained.json"):
        tokenizer = load(tmp_path / name)
        assert tokenizer.notes == [] and tokenizer.prefix == b""
        assert_keeps(tokenizer)


@pytest.mark.parametrize("legacy", [False, True])
def test_one_of_llamas_kind_is_accepted_and_its_space_is_no_byte_of_the_story(tmp_path, legacy):
    tokenizer = load(llama(tmp_path / "llama.json", legacy))
    assert tokenizer.prefix == b" " and tokenizer.notes == [f"it takes the sign {SPACE_SIGN} (U+2581) for a space"]
    assert (tokenizer.end_of_text, tokenizer.eot_token) == ("</s>", 2)
    assert_keeps(tokenizer)
    stories = builtin_stories(400)
    (tmp_path / "stories.txt").write_text(END_OF_TEXT.join(stories[:300]))
    (tmp_path / "valid.txt").write_text(END_OF_TEXT.join(stories[300:]))
    said = []
    config = TrainingConfig(
        data=str(tmp_path / "stories.txt"),
        valid_data=str(tmp_path / "valid.txt"),
        tokenizer=str(tmp_path / "llama.json"),
        cache_dir=str(tmp_path / "cache"),
        batch_size=2,
        context_length=16,
        eval_batches=2,
    )
    data = load_data(config, said.append)
    n_bytes = sum(len(story.encode()) for story in stories[300:])
    assert data.bytes_per_token == pytest.approx(n_bytes / len(data.valid), rel=1e-12)
    assert (data.valid == 2).sum() == 100 and any("U+2581" in line for line in said)


def test_bytes_without_a_token_are_refused_with_an_example(tmp_path):
    trained().save(str(tmp_path / "t.json"))
    text = refusal(tmp_path / "t.json")
    assert "loses text: " in text and "comes back as ''" in text and "bytes without a token" in text


def test_one_of_llamas_kind_without_bytes_is_refused(tmp_path):
    assert "loses text: " in refusal(llama(tmp_path / "llama.json", byte_fallback=False))


def test_dropout_is_switched_off_and_said(changed):
    path = changed(lambda tokenizer: setattr(tokenizer.model, "dropout", 0.5))
    assert json.loads(path.read_text())["model"]["dropout"] == 0.5
    tokenizer = load(path)
    assert tokenizer.notes == ["its BPE dropout of 0.5 is switched off: a text always gives the same ids"]
    assert_keeps(tokenizer)
    assert tokenizer.encode_ordinary(TEXTS[0]) == load_tokenizer("builtin").encode_ordinary(TEXTS[0])


@pytest.mark.parametrize("is_added", [True, False])
def test_an_end_of_text_that_is_not_marked_special_is_taken_as_such(content, tmp_path, is_added):
    spec = json.loads(content)
    if is_added:
        spec["added_tokens"][0]["special"] = False
    else:
        spec["model"]["vocab"][END_OF_TEXT] = spec["added_tokens"].pop()["id"]
    (tmp_path / "t.json").write_text(json.dumps(spec))
    tokenizer = load(tmp_path / "t.json")
    assert tokenizer.notes == [f"its {END_OF_TEXT} is taken as special: no text becomes it"]
    assert tokenizer.eot_token == 4096
    assert_keeps(tokenizer)


def test_an_end_of_text_that_the_merges_make_is_refused(tmp_path):
    tokenizer = trained(initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    spec = json.loads(tokenizer.to_str())
    vocab, merges = spec["model"]["vocab"], []
    spec["pre_tokenizer"] = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    for end in range(2, len(END_OF_TEXT) + 1):
        vocab.setdefault(END_OF_TEXT[:end], len(vocab))
        merges.append([END_OF_TEXT[: end - 1], END_OF_TEXT[end - 1]])
    spec["model"]["merges"] = merges + spec["model"]["merges"]
    (tmp_path / "t.json").write_text(json.dumps(spec))
    assert f"into the special id {vocab[END_OF_TEXT]}" in refusal(tmp_path / "t.json")


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_accents_that_are_rewritten_are_said(changed, form):
    tokenizer = load(changed(lambda t: setattr(t, "normalizer", getattr(normalizers, form)())))
    assert tokenizer.notes == [f"it rewrites accents (Unicode {form}): bits per byte are of the text as rewritten"]


LOSSES = {
    "compatibility": lambda t: setattr(t, "normalizer", normalizers.NFKC()),
    "capitals": lambda t: setattr(t, "normalizer", normalizers.Lowercase()),
    "accents": lambda t: setattr(
        t, "normalizer", normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents()])
    ),
    "lines": lambda t: setattr(t, "normalizer", normalizers.Replace("\n", " ")),
    "spaces": lambda t: setattr(t, "normalizer", normalizers.Replace("  ", " ")),
    "a letter": lambda t: setattr(t, "normalizer", normalizers.Replace("ß", "ss")),
    "spaces between words": lambda t: setattr(
        t, "pre_tokenizer", pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(False)])
    ),
    "spaces that were none": lambda t: setattr(
        t, "pre_tokenizer", pre_tokenizers.Sequence([pre_tokenizers.Digits(), pre_tokenizers.ByteLevel(True)])
    ),
    "the space before a token": lambda t: t.add_tokens([AddedToken("Zelda", lstrip=True)]),
}


@pytest.mark.parametrize("loss", LOSSES)
def test_what_loses_text_is_refused_with_an_example(changed, loss):
    text = refusal(changed(LOSSES[loss]))
    assert "loses text: " in text and " comes back as " in text


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.enable_truncation(3),
        lambda t: t.enable_padding(length=80),
        lambda t: t.add_special_tokens(["<pad>"]),
    ],
    ids=["cut", "filled up", "special tokens"],
)
def test_what_does_not_touch_text_is_no_matter(changed, change):
    tokenizer = load(changed(change))
    assert tokenizer.notes == []
    assert_keeps(tokenizer)


def test_more_ids_than_a_model_can_have_are_refused(content, tmp_path):
    changed = json.loads(content)
    changed["model"]["vocab"]["!"] = 2**20
    (tmp_path / "tokenizer.json").write_text(json.dumps(changed))
    assert "has 1,048,577 ids, at most 1,048,576 can be used" in refusal(tmp_path / "tokenizer.json")


def test_words_alone_are_refused(tmp_path):
    words = Tokenizer(models.WordPiece({"[UNK]": 0, END_OF_TEXT: 1, "once": 2}, unk_token="[UNK]"))
    words.add_special_tokens([END_OF_TEXT])
    words.save(str(tmp_path / "words.json"))
    assert "loses text: " in refusal(tmp_path / "words.json")


def test_a_story_that_the_tokenizer_loses_is_refused_when_it_is_read(tmp_path):
    """SmolLM2's has no token for some control characters, which no probe of text holds: said, and checked."""
    spec = json.loads(trained(initial_alphabet=pre_tokenizers.ByteLevel.alphabet()).to_str())
    spec["model"]["vocab"]["<rest>"] = spec["model"]["vocab"].pop(BYTE_CHARACTERS[4])
    (tmp_path / "t.json").write_text(json.dumps(spec))
    tokenizer = load(tmp_path / "t.json")
    assert tokenizer.notes == ["it has no token for the bytes 0x04: no story may hold a character with them"]
    assert len(list(cleaned_and_encoded(["Tom."] * 3, tokenizer))) == 3
    with pytest.raises(UserError, match=r"loses text: '\\x04' comes back as ''"):
        list(cleaned_and_encoded(["Tom.", "To\x04m."], tokenizer))


def test_a_file_that_the_library_itself_breaks_on_is_refused(content, tmp_path):
    """It has merges that its prefix does not fit, on which Rust panics."""
    changed = json.loads(content)
    changed["model"]["continuing_subword_prefix"] = "##"
    (tmp_path / "t.json").write_text(json.dumps(changed))
    assert "is no tokenizer.json: " in refusal(tmp_path / "t.json")


def test_nothing_that_is_no_tokenizer_is_taken_for_one(tmp_path):
    for text in ("{}", "[]", "no json", '{"model": {}}'):
        (tmp_path / "t.json").write_text(text)
        assert "is no tokenizer.json: " in refusal(tmp_path / "t.json")
