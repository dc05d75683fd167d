"""Matrices whose rows are spread over ranks, for work that needs them whole.

Of n matrices every rank has some rows; afterwards every rank has some of the matrices, and back. That is an
all-to-all, which DTensor makes of a redistribution between two dimensions: each rank sends and receives as
many bytes as it holds, and none ever holds more matrices than its share.

Shape letters: N matrices, O rows, o rows of one rank, I columns.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.distributed.tensor import DTensor, Shard


def on_whole_matrices(work: Callable[[Tensor], Tensor], rows_NoI: Tensor, n_rows: int, mesh) -> Tensor:
    """What `work` makes of whole matrices (n, O, I) → (n, O, I), given and returned by rows, (N, o, I).

    Args:
        rows_NoI: this rank's rows, split over the ranks of `mesh` as torch.chunk would.
        n_rows: O, of all ranks together.
    """
    N, _, I = rows_NoI.shape
    shape = {"shape": (N, n_rows, I), "stride": (n_rows * I, I, 1)}
    by_rows = DTensor.from_local(rows_NoI.contiguous(), mesh, [Shard(1)], run_check=False, **shape)
    matrices_nOI = by_rows.redistribute(placements=[Shard(0)]).to_local()
    done = DTensor.from_local(work(matrices_nOI).contiguous(), mesh, [Shard(0)], run_check=False, **shape)
    return done.redistribute(placements=[Shard(1)]).to_local()
