"""How a run begins: anew, from a finished phase, or where it was stopped."""

from __future__ import annotations

import contextlib
import dataclasses
import platform
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import filelock
import numpy
import torch

from config import ModelConfig, TrainingConfig, UserError
from data import load_data
from data.fingerprint import fingerprint, require_same_stories
from durable_files import remove_leftovers
from phases import HISTORY_NAME, LAUNCHERS_NAME, MODEL_NAMES, PICTURE_NAME, REPORT_NAME, STATE_NAME
from report.history import History, NoHistory, require_history, verified_rows
from run.live import Live, require_packages
from run.resume import changed_settings, cost_of_changes, entry_model, on_device
from run.run import Run
from run.run_state import RunState, read_run_state, write_run_state
from run.saver import Saver
from run.shared_state import lay_out, read_shards, require_whole_shards
from run.start_model import dense_of, keep_tokenizer, require_tokenizer, start_geometry
from run.stop import StopSignals
from training import ranks
from training.device import choose_precision
from training.flops import step_flops
from training.plan import Machine, Plan, make_plan, require_memory

LOCK_NAME = ".run.lock"


@contextlib.contextmanager
def start_run(config: TrainingConfig, device: torch.device, stop: StopSignals) -> Iterator[Run]:
    """Everything that can fail before training does, in the order of what it costs to find out.

    Raises:
        UserError: the folder is taken, in use or not writable, the saved state cannot be used, the
            data cannot be used or is not the saved run's, the device computes wrongly, or the
            largest phase will not fit in memory.
    """
    started = time.perf_counter()
    folder = Path(config.checkpoint_dir)
    ranks.first_alone(lambda: require_packages(config))
    ranks.first_alone(lambda: require_writable(folder))
    with sole_run(folder):
        # Before a saved state takes its place in memory: it is part of what the plan counts.
        machine = Machine.now(device, None, ranks.count())
        saved = read_saved(folder) if config.resume else None
        changes = ranks.first_before_others(lambda: changed_settings(saved, config)) if saved else {}
        earlier_run = [] if saved else ranks.first_alone(lambda: find_earlier_run(folder, config))
        chosen = decided_before(saved, config, changes) if saved else config
        start = ModelConfig(**saved.facts["start_model"]) if saved and "start_model" in saved.facts else None
        start = start if saved else ranks.first_before_others(lambda: start_geometry(config))
        data = ranks.first_before_others(lambda: load_data(config))
        if start:
            ranks.first_alone(lambda: require_tokenizer(start, data))
        stories = fingerprint(data)
        ranks.require_alike(stories, "its stories are not those of rank 0; give all machines the same --data")
        if saved:
            require_same_stories(saved.data, stories)
        heldout = data.heldout_batches()
        dense = dense_of(start) if start else chosen.dense_geometry(data.tokenizer.n_vocab, data.summary["tokenizer"])
        compute_dtype = ranks.as_first(choose_precision(device, chosen, chosen.geometries_from(dense)[-1]))
        plan = make_plan(chosen, dense, dataclasses.replace(machine, compute_dtype=compute_dtype))
        print(plan.table())
        ranks.first_alone(lambda: require_memory(plan, config.ignore_memory_plan))
        new = beginning(config, plan, stories, facts(device, plan, start))
        at = saved or new
        path = folder / MODEL_NAMES[at.phase]
        entry = ranks.first_before_others(lambda: entry_model(at, path, plan.models[at.phase - 1], config.seed))
        model = lay_out(entry, device)
        parameters = dict(model.named_parameters())
        moments = {name: on_device(values, parameters[name]) for name, values in at.moments.items()}
        read_shards(at, folder, model, moments)
        at.weights, at.moments = None, {}  # the model and the optimizers own them from here on
        history, live = NoHistory(), None
        launchers = ranks.gathered(ranks.launcher())

        def open_folder() -> None:
            nonlocal history, live
            keep_tokenizer(config, folder)
            written = verified_rows(folder / HISTORY_NAME, at.history_bytes)[0] if at.history_bytes else []
            live = Live(config, folder, written)
            # Only now, when nothing else can be refused, does an earlier run make room for this one.
            for earlier in earlier_run:
                earlier.unlink()
            (folder / LAUNCHERS_NAME).unlink(missing_ok=True)
            if ranks.count() > 1:
                (folder / LAUNCHERS_NAME).write_text("\n".join(launchers), encoding="utf-8")
            remove_leftovers(folder, (STATE_NAME, PICTURE_NAME, REPORT_NAME, *MODEL_NAMES.values()))
            if not saved:
                # Before the history: from its first row on, the run can be resumed.
                write_run_state(new, folder)
            history = History(folder / HISTORY_NAME, at.history_bytes, at.history_crc, live.tell)

        try:
            ranks.first_alone(open_folder)
        except BaseException:
            if live:
                live.close()
            raise
        run = Run(
            config, device, compute_dtype, data, heldout, plan, folder, history,
            steps_done=at.steps_done * at.config["batch_size"] // config.batch_size, flops_done=at.flops_done,
            skipped_steps=at.skipped_steps, skipped_in_a_row=at.skipped_in_a_row,
            losses=at.losses, stories=stories, facts=new.facts, saved=at, entry=(model, moments),
            saver=Saver(folder, config.save_every, at.position), stop=stop, seconds_before=at.seconds, started=started,
        )  # fmt: skip
        del entry, model, moments, parameters
        record_start(run, new, changes)
        try:
            yield run
        finally:
            history.close()
            if live:
                live.close()
            run.saver.wait()


def read_saved(folder: Path) -> RunState:
    """The state of the run in the folder, which it goes on from. Raises UserError where it cannot be used."""

    def read() -> RunState:
        saved = read_run_state(folder, mmap=ranks.count() > 1)
        require_history(folder / HISTORY_NAME, saved.history_bytes, saved.history_crc)
        return saved

    saved = ranks.first_before_others(read)
    require_whole_shards(saved, folder)
    return saved


def decided_before(saved: RunState, config: TrainingConfig, changes: dict) -> TrainingConfig:
    """With what "auto" had been decided to be: timed, or measured, anew it might be something else."""
    kept = {name: saved.facts[name] for name in ("precision", "memory") if name not in changes}
    return dataclasses.replace(config, **kept)


def beginning(config: TrainingConfig, plan: Plan, stories: dict, facts: dict) -> RunState:
    """Where a run that is not resumed begins: before its first step, or where `start_phase` says.

    With a `start_phase` the phases before it count as done, so that training does not read their stories again.
    """
    state = RunState(dataclasses.asdict(config), stories, facts)
    for phase in range(1, config.start_phase):
        state.phase, state.is_complete = phase, True
        state.steps_done += config.steps(phase)
        state.flops_done += config.steps(phase) * step_flops(plan.models[phase - 1], config.batch_size)
    return state


def record_start(run: Run, new: RunState, changes: dict[str, list]) -> None:
    """Writes the `run` row; or says from where a run goes on, and writes what is otherwise than before, if anything."""
    at, parameters = run.saved, [dataclasses.asdict(count) for count in run.plan.counts]
    if run.config.resume:
        where = f"after phase {at.phase}" if at.is_complete else f"in phase {at.phase}, step {at.step}"
        print(f"Going on with the run in {run.folder} {where}")
    if at.history_bytes == 0:
        run.history.write(
            "run",
            **new.facts,
            config=new.config,
            data=run.data.summary,
            fingerprint={split: run.stories[split]["checksums"][-1] for split in ("train", "valid")},
            bytes_per_token=run.data.bytes_per_token,
            parameters=parameters,
        )
        return
    # Of the facts one alone may be missing: a run of one rank does not say so.
    pairs = {name: [at.facts.get(name, 1), new.facts.get(name, 1)] for name in {**at.facts, **new.facts}}
    changes |= {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
    if changes:
        said = ", ".join(f"{name} {before} → {now}" for name, (before, now) in changes.items())
        print(f"Otherwise than before: {said}. {cost_of_changes(changes)}")
        run.history.write("resumed", phase=at.phase, step=at.step, changes=changes, parameters=parameters)


def facts(device: torch.device, plan: Plan, start: ModelConfig | None = None) -> dict:
    """What besides config and data can make two runs differ."""
    return {
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "numpy": numpy.__version__,
        "commit": git_commit(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "machine": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
        "threads": torch.get_num_threads(),
        "precision": "bf16" if plan.machine.compute_dtype else "fp32",
        "memory": "lean" if plan.is_lean else "full",
        **({"start_model": dataclasses.asdict(start)} if start else {}),
        **({"ranks": ranks.count()} if ranks.count() > 1 else {}),
    }


@contextlib.contextmanager
def sole_run(folder: Path) -> Iterator[None]:
    """Holds the folder for this process; the system lets go of it when the process ends, however it ends.

    Of several ranks the first holds it for all.

    Raises:
        UserError: another process holds it.
    """
    lock = filelock.FileLock(folder / LOCK_NAME)

    def acquire() -> None:
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            raise UserError(
                f"another process is training in {folder}; wait for it, or give another --checkpoint-dir"
            ) from None

    ranks.first_alone(acquire)
    try:
        yield
    finally:
        lock.release()


def require_writable(folder: Path) -> None:
    """Creates the checkpoint folder. Raises UserError where it cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(
            f"--checkpoint-dir {folder} is not writable ({error.strerror}); choose another folder"
        ) from error


def find_earlier_run(folder: Path, config: TrainingConfig) -> list[Path]:
    """The files in the folder that this run would write anew.

    Raises:
        UserError: there are some and `overwrite` is not set.
    """
    models = (MODEL_NAMES[p] for p in (1, 2, 3) if p >= config.start_phase)
    names = (STATE_NAME, HISTORY_NAME, *models, PICTURE_NAME, REPORT_NAME)
    taken = [folder / name for name in names if (folder / name).exists()]
    if taken and not config.overwrite:
        raise UserError(
            f"{folder} holds a run already ({', '.join(path.name for path in taken)}); --resume goes on with it, "
            f"another --checkpoint-dir leaves it alone, --overwrite replaces it"
        )
    return taken


def git_commit() -> str:
    """The commit of this code, and "-dirty" where it has been changed since; empty outside a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
