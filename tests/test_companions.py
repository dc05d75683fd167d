"""A model and its tokenizer file: found together through links, and never written apart."""

import dataclasses

import pytest
import torch

from config import ModelConfig, UserError
from data.cleaning import END_OF_TEXT
from data.tokenizer import find_tokenizer, load_tokenizer
from data.tokenizer_file import as_tokenizer_json, name_of_file
from hugging_face import export
from inference.checkpoint import load_trained
from models import build_dense_model, save_model
from transfer import grow

CPU = torch.device("cpu")
GEOMETRY = ModelConfig(vocab_size=4097, d_model=16, n_layers=1, n_heads=2, context_length=16)


@pytest.fixture
def model(tmp_path):
    """A model in the folder "store", and its tokenizer beside it."""
    path = tmp_path / "store" / "model.pt"
    path.parent.mkdir()
    content = as_tokenizer_json(load_tokenizer("builtin"), END_OF_TEXT)
    (path.parent / "tokenizer.json").write_bytes(content)
    name = name_of_file(path.parent / "tokenizer.json")
    (path.parent / "tokenizer.json").rename(path.parent / name)
    save_model(build_dense_model(dataclasses.replace(GEOMETRY, tokenizer=name)), path)
    return path


def tokenizer_of(model):
    (path,) = model.parent.glob("tokenizer-*.json")
    return path


def link(folder, target, name="link.pt"):
    folder.mkdir(exist_ok=True)
    (folder / name).symlink_to(target)
    return folder / name


def grown(source, out) -> int:
    return grow.main(["--checkpoint", str(source), "--out", str(out), "--scale-factor", "2", "--extra-layers", "1"])


def links_to(model, tmp_path):
    """By an absolute path, a relative one, over two links, and through a folder that is one."""
    (tmp_path / "folder").symlink_to(model.parent)
    first = link(tmp_path / "first", model)
    return [
        first,
        link(tmp_path / "relative", "../store/model.pt"),
        link(tmp_path / "second", "../first/link.pt"),
        tmp_path / "folder" / "model.pt",
    ]


def test_a_model_behind_a_link_finds_its_tokenizer(model, tmp_path):
    for path in links_to(model, tmp_path):
        assert load_trained(path, None, CPU).encoding.n_vocab == 4097, path


def test_a_link_with_a_tokenizer_of_its_own_takes_that(model, tmp_path):
    """As in the cache of the hub, where the files of a model are links into a heap."""
    path = link(tmp_path / "snapshot", model)
    own = path.with_name(tokenizer_of(model).name)
    tokenizer_of(model).rename(own)
    assert load_trained(path, None, CPU).encoding.n_vocab == 4097
    assert find_tokenizer(own.name, path) == find_tokenizer(own.name, path.parent) == str(own)


def test_a_run_that_begins_with_a_linked_model_finds_its_tokenizer(model, tmp_path):
    path = link(tmp_path / "checkpoints", model, "dense_model.pt")
    assert find_tokenizer(tokenizer_of(model).name, path.parent) == str(tokenizer_of(model))


def test_a_model_grown_from_a_link_can_be_used(model, tmp_path):
    for number, path in enumerate(links_to(model, tmp_path)):
        out = tmp_path / f"out{number}" / "grown.pt"
        out.parent.mkdir()
        assert grown(path, out) == 0
        assert load_trained(out, None, CPU).model.config.d_model == 32


def test_a_model_exported_from_a_link_has_its_tokenizer(model, tmp_path):
    path = link(tmp_path / "links", model)
    assert export.main(["--checkpoint", str(path), "--out", str(tmp_path / "exported")]) == 0
    assert (tmp_path / "exported" / "tokenizer.json").read_bytes() == tokenizer_of(model).read_bytes()


def test_a_model_without_its_tokenizer_is_not_grown_into_another(model, tmp_path, capsys):
    name = tokenizer_of(model).name
    tokenizer_of(model).unlink()
    assert grown(model, tmp_path / "grown.pt") == 2
    assert f"{model} needs its tokenizer {name}, which is not beside it; put it there" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["store"]
    with pytest.raises(UserError, match="needs its tokenizer tokenizer-.*json, which is not beside it"):
        load_trained(model, None, CPU)


def test_a_damaged_tokenizer_beside_the_new_model_is_replaced(model, tmp_path):
    copy = tmp_path / tokenizer_of(model).name
    copy.write_text("damaged")
    assert grown(model, tmp_path / "grown.pt") == 0
    assert copy.read_bytes() == tokenizer_of(model).read_bytes()


def test_links_in_a_circle_end(tmp_path):
    link(tmp_path / "circle", "b.pt", "a.pt")
    link(tmp_path / "circle", "a.pt", "b.pt")
    assert find_tokenizer("t.json", tmp_path / "circle") == str(tmp_path / "circle" / "t.json")


def test_what_is_switched_off_in_a_models_tokenizer_is_said_once(model, capsys):
    text = tokenizer_of(model).read_text().replace('"dropout": null', '"dropout": 0.25')
    text = text.replace('"dropout":null', '"dropout":0.25')
    tokenizer_of(model).unlink()
    (model.parent / "t.json").write_text(text)
    name = name_of_file(model.parent / "t.json")
    (model.parent / "t.json").rename(model.parent / name)
    save_model(build_dense_model(dataclasses.replace(GEOMETRY, tokenizer=name)), model)
    load_trained(model, None, CPU)
    assert capsys.readouterr().err == (
        f"The tokenizer {name}: its BPE dropout of 0.25 is switched off: a text always gives the same ids.\n"
    )
