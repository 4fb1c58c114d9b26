"""Runs training commands side by side, each in a process of its own, so that no step is trained twice. Loads without torch."""

from __future__ import annotations

import functools
import logging
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from experiments.record import RECORD
from experiments.runs import STEPS, RunFolder, Step, done_numbers, num_steps

log = logging.getLogger(__name__)

LOG = "train.log"
POLL_SECONDS = 0.5
GRACE_SECONDS = 90.0


@dataclass(frozen=True)
class Job:
    """A run that is to be finished.

    Attributes:
        folder: Of the run.
        command: Finishes it, or goes on with it.
    """

    folder: RunFolder
    command: tuple[str, ...]

    @property
    def name(self) -> str:
        """The run's name."""
        return self.folder.config.name

    def is_finished(self) -> bool:
        """Whether its last step is done and its test tasks are recorded."""
        record, last = self.folder.path / RECORD, self.folder.step(STEPS[-1]) / "done.json"
        return all(self.folder.is_done(step) for step in STEPS) and record.is_file() and record.stat().st_mtime >= last.stat().st_mtime

    @functools.cached_property
    def recipes(self) -> dict[str, Step]:
        """The steps that it trains, by their recipe."""
        return {self.folder.recipe(step): step for step in STEPS if num_steps(self.folder.config, step)}

    def unfinished(self) -> dict[str, Step]:
        """Those of them that are still to be trained."""
        return {recipe: step for recipe, step in self.recipes.items() if not self.folder.is_done(step)}

    def state(self) -> str:
        """What it is at."""
        waiting = [step for step in STEPS if not self.folder.is_done(step)]
        return waiting[0].title if waiting else "test tasks"

    def last_line(self) -> str:
        """The last line of its log."""
        path = self.folder.path / LOG
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
        return next((line.strip() for line in reversed(lines) if line.strip()), "no output")


class Child(Protocol):
    """A running job."""

    def poll(self) -> int | None:
        """The exit code, or None while it runs."""

    def send_signal(self, sig: int) -> None:
        """Pass on a signal."""

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end."""

    def kill(self) -> None:
        """End it at once."""


Launch = Callable[[Job], Child]


class Display(Protocol):
    """Who is told how the jobs go."""

    def started(self, job: Job) -> None:
        """A job has begun."""

    def ended(self, job: Job, failure: str) -> None:
        """A job has ended; the failure is empty if it is finished."""

    def refresh(self, running: Sequence[Job], num_done: int, num_jobs: int, seconds_left: float | None) -> None:
        """Some time has passed."""


def launch_process(*, single_threaded: bool) -> Launch:
    """What starts a job's command; its output is appended to ``train.log`` in the run's folder.

    Args:
        single_threaded: One OpenMP thread a process, as suits several processes at once.
    """

    def launch(job: Job) -> subprocess.Popen[bytes]:
        threads = {"OMP_NUM_THREADS": "1"} if single_threaded else {}
        environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE", "PYTHONUNBUFFERED": "1", **threads}
        job.folder.path.mkdir(parents=True, exist_ok=True)
        with (job.folder.path / LOG).open("ab") as output:
            # A session of its own: Ctrl-C reaches the scheduler alone, which passes it on once.
            return subprocess.Popen(
                job.command, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=environment, start_new_session=True
            )

    return launch


def run_jobs(jobs: Sequence[Job], *, num_parallel: int, launch: Launch, display: Display, poll_seconds: float = POLL_SECONDS) -> dict[str, str]:
    """Finish the jobs in their order, several at a time; one that needs a step which another is to train waits for it, and others go first.

    Args:
        jobs: Of different runs; those that others share steps with come first.
        num_parallel: How many may run at a time.
        launch: Starts one.
        display: Is told how it goes.
        poll_seconds: Between two looks at the running ones.

    Returns:
        The failed runs, each with the last line of its log.

    Raises:
        KeyboardInterrupt: After the running ones have been stopped, each with its state saved.
    """
    waiting = [job for job in jobs if not job.is_finished()]
    running: dict[Job, Child] = {}
    failures: dict[str, str] = {}
    try:
        while waiting or running:
            for ended, code in [(job, child.poll()) for job, child in running.items()]:
                if code is not None:
                    del running[ended]
                    failure = _failure(ended, code)
                    failures.update({ended.name: failure} if failure else {})
                    display.ended(ended, failure)
            while len(running) < num_parallel and (startable := _next(waiting, list(running))) is not None:
                waiting.remove(startable)
                display.started(startable)
                running[startable] = launch(startable)
            num_done = len(jobs) - len(waiting) - len(running)
            display.refresh(list(running), num_done, len(jobs), seconds_left(jobs, [*running, *waiting], num_parallel=num_parallel))
            if running:
                time.sleep(poll_seconds)
    except KeyboardInterrupt:
        _stop(running)
        raise
    return failures


def is_held(job: Job, running: Sequence[Job]) -> bool:
    """Whether a running job is to train a step that this one needs too."""
    needed = job.unfinished()
    return any(not needed.keys().isdisjoint(other.unfinished()) for other in running)


def seconds_left(jobs: Sequence[Job], unfinished: Sequence[Job], *, num_parallel: int) -> float | None:
    """What the unfinished jobs will take, by what the finished ones took; None until one of them is finished.

    Args:
        jobs: All of them.
        unfinished: Those of them that still run or wait.
        num_parallel: How many run at a time.
    """
    times: dict[str, list[float]] = {}
    for job in jobs:
        for name, seconds in _times(job).items():
            times.setdefault(name, []).append(seconds)
    if RECORD not in times:
        return None
    mean = {name: sum(seconds) / len(seconds) for name, seconds in times.items()}
    steps = {recipe: step for job in unfinished for recipe, step in job.unfinished().items()}
    training = sum(mean.get(step.name, 0.0) for step in steps.values())
    return (training + len(unfinished) * mean[RECORD]) / min(num_parallel, max(1, len(unfinished)))


def _times(job: Job) -> Mapping[str, float]:
    """Seconds of the steps that this run trained itself, and of its test tasks."""
    records = {step.name: done_numbers(job.folder.step(step)) for step in STEPS if job.folder.is_done(step)}
    times = {name: float(numbers["seconds"]) for name, numbers in records.items() if not {"shared_from", "left_out"} & set(numbers)}
    if job.is_finished():
        last = job.folder.step(STEPS[-1]) / "done.json"
        times[RECORD] = (job.folder.path / RECORD).stat().st_mtime - last.stat().st_mtime
    return times


def _next(waiting: Sequence[Job], running: Sequence[Job]) -> Job | None:
    return next((job for job in waiting if not is_held(job, running)), None)


def _failure(job: Job, code: int) -> str:
    if code == 0 and job.is_finished():
        return ""
    return job.last_line() if code else f"ended without a {RECORD}: {job.last_line()}"


def _stop(running: Mapping[Job, Child]) -> None:
    for child in running.values():
        if child.poll() is None:
            child.send_signal(signal.SIGINT)
    deadline = time.monotonic() + GRACE_SECONDS
    for job, child in running.items():
        try:
            child.wait(timeout=max(0.0, deadline - time.monotonic()))
        except (subprocess.TimeoutExpired, KeyboardInterrupt):
            log.warning("%s did not stop; it is ended, and goes on from its last checkpoint", job.name)
            child.kill()
            child.wait()
