import numpy as np
import pytest
import torch

from config import UserError
from data.batches import heldout_batches, train_batch, windows_per_epoch
from inference.text_loss import windows

TOKENS = np.arange(1000, dtype=np.uint16)


def windows_of_epoch(epoch, tokens=TOKENS, context_length=10, seed=0):
    n = windows_per_epoch(len(tokens), context_length)
    return [train_batch(tokens, seed, step, 1, context_length)[0] for step in range(epoch * n, (epoch + 1) * n)]


def test_batch_shape_and_windows():
    batch = train_batch(TOKENS, seed=0, step=3, batch_size=4, context_length=10)
    assert batch.shape == (4, 11) and batch.dtype == torch.int64
    assert (batch[:, 1:] - batch[:, :-1] == 1).all()


def test_ids_beyond_uint16_are_the_same_in_batches_and_in_the_windows_of_a_whole_text():
    large = TOKENS.astype(np.uint32) + 80_000
    for small, batch in (
        (train_batch(TOKENS, 0, 3, 4, 10), train_batch(large, 0, 3, 4, 10)),
        (heldout_batches(TOKENS, 1, 4, 10)[0], heldout_batches(large, 1, 4, 10)[0]),
        (next(windows(TOKENS, 10, 4)), next(windows(large, 10, 4))),
    ):
        assert batch.dtype == torch.int64 and torch.equal(batch, small + 80_000)


def test_batches_do_not_depend_on_what_was_drawn_before():
    forward = [train_batch(TOKENS, 7, step, 8, 10) for step in range(40)]
    for step in (39, 3, 17, 0):
        assert torch.equal(train_batch(TOKENS.copy(), 7, step, 8, 10), forward[step])


def test_an_epoch_has_no_window_twice():
    for epoch in (0, 1, 5):
        windows = windows_of_epoch(epoch)
        targets = torch.cat([window[1:] for window in windows])
        assert len(windows) == 99
        assert len(targets.unique()) == len(targets) == 990


def test_epochs_differ_in_order_and_offset():
    starts = [[int(window[0]) for window in windows_of_epoch(epoch)] for epoch in range(4)]
    assert len({tuple(epoch) for epoch in starts}) == 4
    assert len({epoch[0] % 10 for epoch in starts}) > 1


def test_seeds_differ():
    assert not torch.equal(train_batch(TOKENS, 0, 0, 8, 10), train_batch(TOKENS, 1, 0, 8, 10))


def test_order_is_the_same_on_every_machine():
    # Written down once: a change here changes every resumed run.
    assert train_batch(TOKENS, seed=3, step=20, batch_size=6, context_length=10)[:, 0].tolist() == [
        908,
        808,
        538,
        38,
        378,
        928,
    ]


def test_batches_do_not_depend_on_how_samples_are_grouped():
    singly = torch.cat([train_batch(TOKENS, 0, step, 1, 10) for step in range(96, 102)])
    assert torch.equal(train_batch(TOKENS, 0, 16, 6, 10), singly)  # straddles the end of epoch 0


def test_the_need_of_a_run_fits_one_epoch():
    steps, batch_size, context_length = 7, 3, 10
    n_tokens = (steps * batch_size + 1) * context_length
    assert windows_per_epoch(n_tokens, context_length) == steps * batch_size


def test_windows_reach_no_further_than_the_tokens():
    for n_tokens in range(40, 61):
        for seed in range(10):
            for window in windows_of_epoch(0, TOKENS[:n_tokens], seed=seed):
                assert len(window) == 11


def test_too_few_tokens_for_a_batch():
    with pytest.raises(UserError, match="89 tokens, but one batch of 8 x 10 needs 90; .*lower batch_size"):
        train_batch(TOKENS[:89], 0, 0, 8, 10)
    train_batch(TOKENS[:90], 0, 0, 8, 10)


def test_heldout_batches_are_spread_and_do_not_overlap():
    found = heldout_batches(TOKENS, n_batches=3, batch_size=4, context_length=10)
    assert [tuple(batch.shape) for batch in found] == [(4, 11)] * 3
    ids = torch.cat(found)
    assert len(ids.unique()) == ids.numel()
    assert ids[0, 0] == 0 and ids[-1, -1] == 999
    assert (ids[1:, 0] - ids[:-1, 0]).unique().numel() <= 2


def test_heldout_need_met_exactly_or_by_fewer_batches():
    assert len(heldout_batches(TOKENS[:132], 3, 4, 10)) == 3
    assert len(heldout_batches(TOKENS[:131], 3, 4, 10)) == 2
    assert len(heldout_batches(TOKENS[:11], 5, 1, 10)) == 1
    with pytest.raises(UserError, match="43 tokens, but one batch of 4 x 11 needs 44; .*--valid-data"):
        heldout_batches(TOKENS[:43], 3, 4, 10)


def test_more_of_a_stream_changes_no_earlier_batch():
    tokens = np.random.default_rng(0).integers(0, 1000, 5 * 8 * 16 + 16).astype(np.uint16)
    shorter, longer = tokens[: 2 * 8 * 16 + 16], tokens
    for step in range(4):
        first, second = (train_batch(each, 3, step, 4, 16, shard=8) for each in (shorter, longer))
        assert torch.equal(first, second)
    starts = {tuple(row) for step in range(10) for row in train_batch(longer, 3, step, 4, 16, shard=8).tolist()}
    assert len(starts) == 40, "every window once"
