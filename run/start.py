"""How a run begins: anew, from a finished phase, or where it was stopped."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import textwrap
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from config import ModelConfig, TrainingConfig, UserError
from data import StoryData, load_data
from data.fingerprint import fingerprint, require_same_stories
from durable_files import remove_leftovers
from models import Transformer
from phases import HISTORY_NAME, LAUNCHERS_NAME, PHASES, PICTURE_NAME, REPORT_NAME, STATE_NAME
from report.history import History, NoHistory, require_history, verified_rows
from run.console import duration_line
from run.facts import facts
from run.folder import find_earlier_run, require_writable, sole_run
from run.live import Live, require_packages
from run.resume import changed_settings, cost_of_changes, entry_model, may_differ, on_device
from run.run import Run
from run.run_state import RunState, read_run_state, write_run_state
from run.saver import Saver
from run.start_model import dense_of, keep_tokenizer, probable_dense, require_tokenizer, start_geometry
from run.state_shards import lay_out, read_shards, require_whole_shards
from run.stop import StopSignals
from training.device import choose_precision, probable_precision
from training.machine import Machine
from training.outlook import settle_growth
from training.plan import Plan, make_plan, require_memory
from training.ranks import team
from training.torchrun import launcher, planned_count, together
from transfer.optimizer_growth import Moments


@contextlib.contextmanager
def start_run(config: TrainingConfig, device: torch.device, stop: StopSignals) -> Iterator[Run]:
    """Everything that can fail before training does, in the order of what it costs to find out.

    Raises:
        UserError: the folder is taken, in use or not writable, the saved state cannot be used, the
            data cannot be used or is not the saved run's, the device computes wrongly, or the
            largest phase will not fit in memory.
    """
    started, folder = time.perf_counter(), Path(config.checkpoint_dir)
    with together(config, device) as device:
        team().first(lambda: require_packages(config))
        team().first(lambda: require_writable(folder))
        with sole_run(folder):
            # Before a saved state takes its place in memory: it is part of what the plan counts.
            machine = Machine.now(device, None, team().size)
            settled = settle(config, device, folder)
            plan = decide(settled, machine)
            run = open_run(settled, plan, stop)
            run.progress.start_clock(started)
            try:
                yield run
            finally:
                run.history.close()
                run.saver.wait()


def print_plan(config: TrainingConfig, device: torch.device) -> None:
    """What a run would take, and start nothing: for the tokenizer and the precision that it will most probably have."""
    start_model = start_geometry(config)
    config, outlook = settle_growth(config, probable_dense(config, start_model))
    dense = probable_dense(config, start_model)
    plan = make_plan(config, dense, Machine.now(device, probable_precision(device, config), planned_count()))
    print(plan.table())
    if not plan.is_refused:
        print(duration_line(plan, config, config.start_phase))
        print_outlook(outlook)


@dataclass
class Settled:
    """What a run goes by.

    given: as given. config: with what `grow_when` made of it when the run began.
    decided: and with what the saved run had decided for the "auto" of precision and memory.
    outlook: whether growth was expected to pay when the run began.
    saved: the state that it goes on from, `changes` the settings that differ from that one's, as [saved, now].
    earlier_files: of a run in the folder, which make room for this one.
    start_model: the model with which `start_phase` begins.
    stories: their fingerprint.
    dense: the geometry of phase 1, from which those of the others follow.
    """

    given: TrainingConfig
    config: TrainingConfig
    decided: TrainingConfig
    outlook: str
    folder: Path
    saved: RunState | None
    changes: dict[str, list]
    earlier_files: list[Path]
    start_model: ModelConfig | None
    data: StoryData
    heldout: list[Tensor]
    stories: dict
    dense: ModelConfig
    compute_dtype: torch.dtype | None

    @property
    def by_growth(self) -> dict:
        """The settings that `grow_when` made others of, and these."""
        return {name: value for name, value in vars(self.config).items() if value != getattr(self.given, name)}


def settle(given: TrainingConfig, device: torch.device, folder: Path) -> Settled:
    """Settings, data, precision. Raises UserError where one of them cannot be used."""
    saved, changes, earlier_files, start_model = team().in_turn(lambda: look_into(folder, given))
    if saved:
        require_whole_shards(saved, folder)
        kept = {name: value for name, value in saved.settled.items() if name not in changes}
        config, outlook = dataclasses.replace(given, **kept), saved.facts.get("outlook", "")
        data = team().in_turn(lambda: stories_of(config, saved.facts["heldout_batch"], goes_on=True))
    else:
        config, outlook, data = team().in_turn(lambda: begin_with(given, start_model))
    decided = decided_before(saved, config, changes) if saved else config
    if start_model:
        require_tokenizer(start_model, data)
    stories = fingerprint(data)
    team().require_alike(stories, "its stories are not those of rank 0; give all machines the same --data")
    if saved:
        require_same_stories(saved.data, stories)
    heldout, dense = data.heldout_batches(), dense_with(config, start_model, data)
    compute_dtype = team().agreed(choose_precision(device, decided, decided.geometries_from(dense)[-1]))
    return Settled(
        given, config, decided, outlook, folder, saved, changes, earlier_files, start_model, data, heldout, stories, dense,
        compute_dtype,
    )  # fmt: skip


def begin_with(given: TrainingConfig, start_model: ModelConfig | None) -> tuple[TrainingConfig, str, StoryData]:
    """Of a new run: its settings with what `grow_when` makes of them, what is said of its growth, and its stories.

    How many of these are read hangs on the steps, and what growth costs on the tokenizer, which is known with the
    stories: where it is another one than expected, they may have to be read once more.
    """
    guess, _ = settle_growth(given, probable_dense(given, start_model))
    data = stories_of(guess, given.batch_size, goes_on=False)
    config, outlook = settle_growth(given, dense_with(given, start_model, data))
    if config.total_steps != guess.total_steps:
        data = stories_of(config, given.batch_size, goes_on=False)
    return config, outlook, data


def dense_with(config: TrainingConfig, start_model: ModelConfig | None, data: StoryData) -> ModelConfig:
    """The geometry of phase 1: of the model that was there, or as set, for these stories' tokenizer."""
    if start_model:
        return dense_of(start_model)
    return config.dense_geometry(data.tokenizer.n_vocab, data.summary["tokenizer"])


def stories_of(config: TrainingConfig, heldout_batch: int, goes_on: bool) -> StoryData:
    """Raises UserError where they cannot be had: they are no part of what a run saves."""
    try:
        return load_data(config, heldout_batch=heldout_batch)
    except UserError as error:
        if not goes_on:
            raise
        raise UserError(
            f"{error}; the run goes on with the stories and the tokenizer that it began with: put them back, or say with "
            f"--data, --valid-data and --tokenizer where they are now"
        ) from error


def look_into(
    folder: Path, config: TrainingConfig
) -> tuple[RunState | None, dict[str, list], list[Path], ModelConfig | None]:
    """What is in the folder: the state to go on from and the settings that differ from its own; or files of an earlier
    run; and the geometry of the model with which the run begins."""
    if not config.resume:
        return None, {}, find_earlier_run(folder, config), start_geometry(config)
    saved = read_run_state(folder, mmap=not team().is_alone)
    require_history(folder / HISTORY_NAME, saved.history_bytes, saved.history_crc)
    start_model = saved.facts.get("start_model")
    return saved, changed_settings(saved, config), [], start_model and ModelConfig(**start_model)


def decided_before(saved: RunState, config: TrainingConfig, changes: dict) -> TrainingConfig:
    """With what "auto" had been decided to be: timed, or measured, anew it might be something else."""
    kept = {name: saved.facts[name] for name in ("precision", "memory") if name not in changes}
    return dataclasses.replace(config, **kept)


def decide(settled: Settled, machine: Machine) -> Plan:
    """What each phase will be and take, printed. Raises UserError where that does not fit."""
    config, at = settled.config, settled.saved
    machine = dataclasses.replace(machine, compute_dtype=settled.compute_dtype)
    plan = make_plan(settled.decided, settled.dense, machine, lambda name: not at or may_differ(name, at.position))
    print(plan.table())
    team().first(lambda: require_memory(plan, config.ignore_memory_plan))
    begins_with, step = (at.phase + at.is_complete, 0 if at.is_complete else at.step) if at else (config.start_phase, 0)
    print(duration_line(plan, config, begins_with, step))
    if not at:
        print_outlook(settled.outlook)
    return plan


def print_outlook(outlook: str) -> None:
    if outlook:
        print("\n".join(textwrap.wrap(outlook, 120, break_on_hyphens=False)))


def open_run(settled: Settled, plan: Plan, stop: StopSignals) -> Run:
    """The run at the place where it begins, with its model in memory and its files open."""
    config, folder = settled.config, settled.folder
    new = beginning(settled, plan)
    at = settled.saved or new
    identity = {"config": new.config, "data": new.data, "facts": new.facts, "settled": new.settled}
    progress = copy.deepcopy(at.progress)
    progress.steps = progress.steps * at.config["batch_size"] // config.batch_size
    entry = enter(at, folder, plan, config.seed)
    launchers = team().gathered(launcher())
    history = team().only_first(lambda: open_folder(settled, new, launchers)) or NoHistory()
    saver = Saver(folder, config.save_every, at.position)
    run = Run(config, settled.data, settled.heldout, plan, folder, history, progress, stop, saver, identity, at, entry)
    record_start(run, settled.changes)
    return run


def enter(at: RunState, folder: Path, plan: Plan, seed: int) -> tuple[Transformer, Moments]:
    """The model and the moments with which a run goes on from the state `at`, which gives up its own."""
    device, geometry = plan.machine.device, plan.models[at.phase - 1]
    model = lay_out(team().in_turn(lambda: entry_model(at, folder, geometry, seed)), device)
    parameters = dict(model.named_parameters())
    moments = {name: on_device(values, parameters[name]) for name, values in at.moments.items()}
    read_shards(at, folder, model, moments)
    at.weights, at.moments = None, {}  # the model and the optimizers own them from here on
    return model, moments


def open_folder(settled: Settled, new: RunState, launchers: list[str]) -> History:
    """Makes room for the run in its folder, and opens its history and the mirrors of that."""
    config, folder, at = settled.config, settled.folder, settled.saved or new
    keep_tokenizer(config, folder)
    written = verified_rows(folder / HISTORY_NAME, at.history_bytes)[0] if at.history_bytes else []
    live = Live(config, folder, written)
    try:
        # Only now, when nothing else can be refused, does an earlier run make room for this one.
        for earlier in settled.earlier_files:
            earlier.unlink()
        (folder / LAUNCHERS_NAME).unlink(missing_ok=True)
        if len(launchers) > 1:
            (folder / LAUNCHERS_NAME).write_text("\n".join(launchers), encoding="utf-8")
        remove_leftovers(folder, (STATE_NAME, PICTURE_NAME, REPORT_NAME, *(phase.file for phase in PHASES)))
        if not settled.saved:
            # Before the history: from its first row on, the run can be resumed.
            write_run_state(new, folder)
        return History(folder / HISTORY_NAME, at.history_bytes, at.history_crc, live)
    except BaseException:
        live.close()
        raise


def beginning(settled: Settled, plan: Plan) -> RunState:
    """Where a run that is not resumed begins: before its first step, or where `start_phase` says.

    With a `start_phase` the batches of the phases before it count as read, so that training does not read them again;
    what those phases took counts for nothing, as another run has done it.
    """
    config = settled.config
    state = RunState(
        dataclasses.asdict(settled.given),
        settled.stories,
        facts(plan, settled.data.heldout_batch, settled.outlook, settled.start_model),
        settled.by_growth,
    )
    for phase in PHASES[: config.start_phase - 1]:
        state.phase, state.is_complete = phase.number, True
        state.progress.steps += config.steps(phase.number)
    return state


def record_start(run: Run, changes: dict[str, list]) -> None:
    """Writes the `run` row; or says from where a run goes on, and writes what is otherwise than before, if anything."""
    at, facts = run.began_at, run.identity["facts"]
    parameters = [dataclasses.asdict(count) for count in run.plan.counts]
    if run.config.resume:
        where = f"after phase {at.phase}" if at.is_complete else f"in phase {at.phase}, step {at.step}"
        print(f"Going on with the run in {run.folder} {where}")
    if at.history_bytes == 0:
        stories = run.identity["data"]
        run.history.write(
            "run",
            **facts,
            config=run.identity["config"] | run.identity["settled"],
            data=run.data.summary,
            fingerprint={split: stories[split]["checksums"][-1] for split in ("train", "valid")},
            bytes_per_token=run.data.bytes_per_token,
            parameters=parameters,
        )
        return
    # Of the facts one alone may be missing: a run of one process does not say so.
    pairs = {name: [at.facts.get(name, 1), facts.get(name, 1)] for name in {**at.facts, **facts}}
    changes |= {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
    if changes:
        said = ", ".join(f"{name} {before} → {now}" for name, (before, now) in changes.items())
        print(f"Otherwise than before: {said}. {cost_of_changes(changes)}")
        run.history.write("resumed", phase=at.phase, step=at.step, changes=changes, parameters=parameters)
