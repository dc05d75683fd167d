"""TinyStories from the Hugging Face hub, or from the copy that `datasets` has cached."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

from data.network import reachable
from data.sources import StorySource

DATASET = "roneneldan/TinyStories"
# What is streamed is always this commit, so that equal settings read equal stories.
REVISION = "f54c09fd23315a6f9c86f9dc80f725de7d8f9c64"
CACHED = DATASET.split("/")[0] + "___*"
PROBE_SECONDS = 4.0


class HubUnavailable(Exception):
    """TinyStories can be had neither from the hub nor from a cached copy; the text says why."""


class TinyStoriesHub:
    """The dataset's two splits; nothing is imported or asked for before `connect`.

    `revision`: of what is read; where that is a copy, what the copy is called in the cache of `datasets`.
    """

    def __init__(self):
        self.revision = REVISION
        self._load_split: Callable | None = None

    def connect(self) -> None:
        """Finds out where the stories come from, within `PROBE_SECONDS` and an import.

        Raises:
            HubUnavailable: the hub does not answer, and there is no cached copy.
        """
        if self._load_split is not None:
            return
        endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
        if _told_to_stay_offline():
            reason = "HF_HUB_OFFLINE or HF_DATASETS_OFFLINE is set"
        elif reachable(endpoint, PROBE_SECONDS):
            self._load_split = _load_stream
            return
        else:
            reason = f"no answer from {endpoint}"
        if not cached_copy_exists():
            raise HubUnavailable(reason)
        # Read by `datasets` and `huggingface_hub` once, while they are imported. Without it
        # they retry for half a minute before they look into their cache.
        os.environ["HF_HUB_OFFLINE"] = "1"
        self._load_split, self.revision = _load_cached_copy, revisions_of_copies()

    def stories(self, split: str) -> Iterator[str]:
        """The stories of "train" or "validation".

        Raises:
            HubUnavailable: as `connect`, or the transfer failed.
        """
        self.connect()
        datasets = _quiet_datasets()
        from huggingface_hub.errors import EntryNotFoundError, HTTPError

        try:
            for record in self._load_split(datasets, split):
                yield record["text"]
        except (
            OSError,
            ValueError,
            RuntimeError,
            HTTPError,
            EntryNotFoundError,
            datasets.exceptions.DatasetsError,
        ) as error:
            raise HubUnavailable(f"{type(error).__name__}: {textwrap.shorten(str(error), 160)}") from error

    def source(self) -> StorySource:
        """Of the revision that is known by now: where nothing has connected yet, the one that would be streamed."""
        revision = self.revision

        def stories(split: str) -> Iterator[str]:
            self.connect()
            if self.revision != revision:
                raise HubUnavailable(f"what `datasets` has cached is revision {self.revision}, not {revision}")
            yield from self.stories(split)

        return StorySource(
            label="tinystories",
            description=f"TinyStories ({DATASET})",
            fingerprint=f"{DATASET}@{revision}",
            train=lambda: stories("train"),
            valid=lambda: stories("validation"),
        )


def _told_to_stay_offline() -> bool:
    yes = ("1", "ON", "YES", "TRUE")
    return any(os.environ.get(name, "").upper() in yes for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"))


def cached_copy_exists() -> bool:
    """Whether `datasets` has something of this dataset in its cache, told without its slow import."""
    return any(_cache_of_datasets().glob(CACHED))


def revisions_of_copies() -> str:
    """Of what it has there, as far as that is complete."""
    # owner___name / configuration / version / revision
    return " ".join(sorted(path.parent.name for path in _cache_of_datasets().glob(f"{CACHED}/*/*/*/dataset_info.json")))


def _cache_of_datasets() -> Path:
    cache_home = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    hub_home = os.environ.get("HF_HOME", os.path.join(cache_home, "huggingface"))
    return Path(os.environ.get("HF_DATASETS_CACHE", os.path.join(hub_home, "datasets"))).expanduser()


def _quiet_datasets():
    import datasets
    import huggingface_hub

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity_error()
    huggingface_hub.logging.set_verbosity_error()
    return datasets


def _load_stream(datasets, split: str):
    return datasets.load_dataset(DATASET, split=split, streaming=True, revision=REVISION)


def _load_cached_copy(datasets, split: str):
    return datasets.load_dataset(DATASET, split=split)
