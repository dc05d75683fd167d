"""A vocabulary of more ids than uint16 holds, as Llama 3's 128,256, on the whole way: import, training, export."""

import pytest
import torch

import evaluate
import train_tinystories
from data.builtin_stories import builtin_split
from data.cleaning import END_OF_TEXT, clean_stories
from data.tokenizer import load_tokenizer
from data.whole_text import read_whole_text
from hugging_face import export, import_hf
from inference.text_loss import measure_loss, windows
from models import load_model
from report.history import read_history

TOLERANCE = 1e-4
END = 17 * 4096
GEOMETRY = {
    "vocab_size": 70_000, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 24, "initializer_range": 0.3, "eos_token_id": END,
    "rope_parameters": {
        "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def theirs(transformers, large_tokenizer_json, tmp_path_factory):
    """A random Llama with Llama 3's RoPE, and its folder."""
    folder = tmp_path_factory.mktemp("theirs")
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**GEOMETRY)).eval()
    model.save_pretrained(folder)
    (folder / "tokenizer.json").write_bytes(large_tokenizer_json)
    return model, folder


@pytest.fixture(scope="module")
def run(theirs, tmp_path_factory):
    """The folder in which it was imported, upcycled, grown, and trained for a few steps."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "stories.txt").write_text(END_OF_TEXT.join(builtin_split()[1][:400]), encoding="utf-8")
    assert import_hf.main([str(theirs[1]), "--out", str(folder / "dense_model.pt")]) == 0
    flags = (
        "--preset tiny --device cpu --precision fp32 --start-phase 2 --extra-layers 1 --scale-factor 1.5 --batch-size 4 "
        "--steps-phase2 3 --steps-phase3 3 --eval-batches 1 --sample-tokens 4 --n-experts 4"
    )
    places = ["--data", folder / "stories.txt", "--cache-dir", folder / "cache", "--checkpoint-dir", folder]
    assert train_tinystories.main([*flags.split(), *map(str, places)]) == 0
    return folder


def drift(model, peer, tokens_BT) -> float:
    with torch.no_grad():
        expected = peer(tokens_BT).logits
        assert expected.std() > 0.05
        return (model(tokens_BT) - expected).abs().max().item()


def test_the_ids_of_stories_and_their_loss_are_those_of_transformers(run, theirs, transformers):
    model = load_model(run / "dense_model.pt")
    tokenizer = load_tokenizer(str(run / model.config.tokenizer))
    tokens = read_whole_text(str(run / "stories.txt"), tokenizer).tokens[:4000]
    fast = transformers.PreTrainedTokenizerFast(tokenizer_file=str(theirs[1] / "tokenizer.json"))
    stories = [story for story, _ in clean_stories([(run / "stories.txt").read_text(encoding="utf-8")])]
    expected = [number for story in stories for number in (*fast(story).input_ids, END)][:4000]
    assert tokens.tolist() == expected and max(expected) == END > 65_535
    batches = list(windows(tokens, 24, 8))
    for batch_BT in (batches[0], batches[-1]):
        assert drift(model, theirs[0], batch_BT[:, :-1]) <= TOLERANCE
    loss = measure_loss(model, tokens, 8).loss
    assert abs(measure_loss(model, tokens % 65_536, 8).loss - loss) > TOLERANCE, "wrapped ids would be seen"


def test_growth_is_exact_and_training_reads_ids_beyond_uint16(run):
    rows = read_history(run / "training_history.jsonl")
    jumps = [row["jump"] for row in rows if row["event"] == "boundary"]
    assert len(jumps) == 2 and max(map(abs, jumps)) < 1e-5
    before, after = (load_model(run / f"{name}.pt").embedding.weight for name in ("dense_model", "moe_model_final"))
    # Of an embedding that is no output matrix the rows that were read move.
    assert not torch.equal(before[END], after[END]) and torch.equal(before[END % 65_536], after[END % 65_536])
    assert evaluate.main([
        "--checkpoint", str(run / "large_moe_final.pt"), "--data", str(run / "stories.txt"), "--max-tokens", "500",
        "--device", "cpu",
    ]) == 0  # fmt: skip


def test_what_was_trained_opens_as_a_stock_mixtral(run, transformers, tmp_path):
    assert export.main(["--checkpoint", str(run / "large_moe_final.pt"), "--out", str(tmp_path / "out")]) == 0
    peer = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert type(peer) is transformers.MixtralForCausalLM and peer.config.eos_token_id == END
    model = load_model(run / "large_moe_final.pt")
    tokens = torch.randint(70_000, (2, 24), generator=torch.Generator().manual_seed(0))
    assert drift(model, peer, tokens) <= TOLERANCE
