"""The saved state of several ranks: `run_state.pt` as from one, and beside it a folder with every rank's tensors.

Each rank writes its part of weights and moments by torch's distributed checkpoint (DCP), which reads them again on any
number of ranks, one included. The folder is written first, and synced; then `run_state.pt`, which names it with a
SHA-256 of each of its files, is replaced as ever; then the folder that the state before had named is
deleted. So at any moment there is a whole state. The two folders' names take turns.
"""

from __future__ import annotations

import dataclasses
import hashlib
import pickle
import shutil
from pathlib import Path

import torch
from torch import Tensor

from config import UserError
from durable_files import READ_BYTES, reason, sync_folder
from models import Transformer
from models.shards import empty_on_ranks, filling, is_shared, whole_parameter
from phases import STATE_NAME
from run.run_state import SHARD_FOLDERS, RunState, write_run_state
from training.ranks import SaidByFirst, team
from training.torchrun import is_lost
from transfer.optimizer_growth import Moments

# All that the description of a checkpoint is made of. It is a pickle, and a pickle can name any code.
DESCRIBED_BY = {
    ("pathlib", "PosixPath"), ("torch", "Size"), ("torch.serialization", "_get_layout"),
    *(("torch", name) for name in ("float32", "float64", "bfloat16", "float16")),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    *(
        ("torch.distributed.checkpoint.metadata", name)
        for name in ("ChunkStorageMetadata", "Metadata", "MetadataIndex", "StorageMeta", "TensorProperties",
                     "TensorStorageMetadata", "_MEM_FORMAT_ENCODING")
    ),
}  # fmt: skip


def lay_out(model: Transformer, device: torch.device) -> Transformer:
    """The model on this rank's device, shared where there are several; an unfilled one (on meta) stays unfilled."""
    is_unfilled = model.device.type == "meta"
    if team().is_alone:
        return model.to_empty(device=device) if is_unfilled else model.to(device)
    shared = empty_on_ranks(model.config, team().mesh(device), device)
    if not is_unfilled:
        for name, parameter in shared.named_parameters():
            with filling(parameter) as value, torch.no_grad():
                value.copy_(whole_parameter(model, name))
    return shared


def write_state_shards(state: RunState, folder: Path) -> None:
    """As `write_run_state`, called by every rank with its parts.

    Raises:
        UserError: it cannot be written; the state before it is still there.
    """
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.api import CheckpointException

    name = team().first(lambda: free_folder(folder))
    tensors = shared_tensors(state.weights or {}, state.moments)
    writer = dcp.FileSystemWriter(folder / name, sync_files=True)
    try:
        dcp.save(tensors, storage_writer=writer, process_group=team().unhurried)
    except CheckpointException as error:  # not an Exception
        failure = next(iter(error.failures.values()))[0]
        if is_lost(failure):
            raise failure from None
        raise UserError(
            f"could not write {folder / name}: {reason(failure)}; the state saved before is whole: free some space, "
            f"then go on with --resume"
        ) from error
    own_files = sorted((folder / name).glob(f"__{team().number}_*")) + [folder / name / ".metadata"] * team().is_first
    checksums = {file: checksum for own in team().gathered(checksums_of(own_files)) for file, checksum in own.items()}
    kept = {key: {k: v for k, v in moments.items() if not is_shared(v)} for key, moments in state.moments.items()}
    described = dataclasses.replace(
        state,
        weights=None,
        moments=kept,
        shards={"folder": name, "has_weights": bool(state.weights), "sha256": checksums},
    )
    team().first(lambda: name_the_folder(described, folder))


def name_the_folder(state: RunState, folder: Path) -> None:
    sync_folder(folder / state.shards["folder"])
    write_run_state(state, folder)


def free_folder(folder: Path) -> str:
    """The one of the two names that the saved state does not use, as an empty folder."""
    used = used_folder(folder)
    name = next(name for name in SHARD_FOLDERS if name != used)
    try:
        shutil.rmtree(folder / name, ignore_errors=True)
        (folder / name).mkdir()
    except OSError as error:
        raise UserError(f"could not write {folder / name}: {reason(error)}; the state saved before is whole") from error
    return name


def used_folder(folder: Path) -> str | None:
    path = folder / STATE_NAME
    if not path.exists():
        return None
    shards = torch.load(path, map_location="cpu", mmap=True, weights_only=True).get("shards")
    return shards and shards["folder"]


def shared_tensors(weights: dict[str, Tensor], moments: Moments) -> dict[str, Tensor]:
    """By the names that the checkpoint has for them."""
    named = {f"weights/{name}": tensor for name, tensor in weights.items()}
    for name, by_key in moments.items():
        named |= {f"moments/{name}/{key}": tensor for key, tensor in by_key.items() if tensor.ndim}
    return named


def require_whole_shards(state: RunState, folder: Path) -> None:
    """Raises UserError, on all ranks, where a file that the state names is missing or has changed; they share the work."""
    if not state.shards:
        return
    where, wanted = folder / state.shards["folder"], state.shards["sha256"]
    own_names = sorted(wanted)[team().number :: team().size]
    found = checksums_of([where / name for name in own_names])
    bad = [name for name in own_names if found.get(name) != wanted[name]]
    bad = [name for names in team().gathered(bad) for name in names]
    if bad:
        raise (UserError if team().is_first else SaidByFirst)(
            f"{where / bad[0]} is damaged or missing; put a good copy back, or start again with --overwrite, or with "
            f"--start-phase from a finished model"
        )


def read_shards(state: RunState, folder: Path, model: Transformer, moments: Moments) -> None:
    """Fills in what ranks have saved: the weights, where the state has them, and moments, laid out like their parameters.

    Raises:
        UserError: the description of the tensors names something that is none of ours.
    """
    if not state.shards:
        return
    import torch.distributed.checkpoint as dcp

    class Reader(dcp.FileSystemReader):
        """Runs no code from the checkpoint."""

        def read_metadata(self, *_, **__):
            with (self.path / ".metadata").open("rb") as file:
                metadata = Description(file).load()
            metadata.storage_meta.load_id = self.load_id
            return metadata

    reader = Reader(folder / state.shards["folder"])
    parameters = dict(model.named_parameters())
    for key, about in reader.read_metadata().state_dict_metadata.items():
        kind, name, *moment = key.split("/")
        if kind == "moments":
            empty = torch.empty_like(parameters[name], dtype=about.properties.dtype, requires_grad=False)
            moments.setdefault(name, {})[moment[0]] = empty
    weights = model.state_dict() if state.shards["has_weights"] else {}
    group = {"no_dist": True} if team().is_alone else {"process_group": team().unhurried}
    dcp.load(shared_tensors(weights, moments), storage_reader=reader, **group)


class Description(pickle.Unpickler):
    """Of what a checkpoint holds, and of nothing else."""

    def find_class(self, module: str, name: str):
        if (module, name) not in DESCRIBED_BY:
            raise UserError(
                f"the saved state holds other things than tensors ({module}.{name}); start with --overwrite"
            )
        return super().find_class(module, name)


def checksums_of(files: list[Path]) -> dict[str, str]:
    """SHA-256 by name, 64 hex digits; a file that cannot be read has none."""
    checksums = {}
    for path in files:
        sha256 = hashlib.sha256()
        try:
            with path.open("rb") as file:
                while block := file.read(READ_BYTES):
                    sha256.update(block)
        except OSError:
            continue
        checksums[path.name] = sha256.hexdigest()
    return checksums
