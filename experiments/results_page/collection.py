"""The records of a folder, in groups that are checked in themselves: a base run over seeds, and its ablations' variants over seeds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from experiments.record import RunRecord, TaskRecord, read_record
from experiments.sweep import ABLATIONS
from twn_lightning.errors import DataError

NEEDED = ("never", "always", "auto")
"""Modes that every record holds; the page leaves out what others lack."""
_SHARED = ("data_revision", "evaluation.think_sides", "evaluation.validation_queries")
"""Of the provenance, what must be as in the base run, beside the settings of the stages; what one of the two records lacks is not compared."""


@dataclass(frozen=True)
class Collection:
    """A base run and what is compared with it.

    Attributes:
        name: Of the base run, without its seed.
        base: By seed.
        ablations: Ablation → variant → records by seed, both names in alphabetical order.
    """

    name: str = ""
    base: tuple[RunRecord, ...] = ()
    ablations: dict[str, dict[str, tuple[RunRecord, ...]]] = field(default_factory=dict)

    def task_names(self, kind: str = "") -> tuple[str, ...]:
        """The test tasks, all or those of a kind, in the suite's order."""
        return tuple(task.name for task in self.base[0].tasks if kind in ("", task.kind)) if self.base else ()

    def num_queries(self) -> int:
        """Of the test tasks together."""
        return sum(len(task.keys) for task in self.base[0].tasks) if self.base else 0

    def records(self) -> Iterator[RunRecord]:
        """Every record, the base runs first."""
        yield from self.base
        for variants in self.ablations.values():
            for records in variants.values():
                yield from records

    def paired(self, records: Sequence[RunRecord]) -> tuple[tuple[RunRecord, ...], tuple[RunRecord, ...]]:
        """The records and the base runs of the seeds that both have; both empty if there is none."""
        by_seed = {record.seed: record for record in self.base}
        common = tuple(record for record in records if record.seed in by_seed)
        return common, tuple(by_seed[record.seed] for record in common)


def read_collections(folder: Path) -> tuple[Collection, ...]:
    """The records of a folder, ``*.json``, a group for each base run's name.

    A base run is called ``<name>-s<seed>``, a variant's ``<name>-<ablation>-<variant>-s<seed>``.

    Returns:
        The main group first: that with most test queries, of equal ones that with most seeds; the others by name. Empty if there is no record.

    Raises:
        DataError: A file is no record, contradicts itself, or was not made on the same test tasks as the others of its group, of the same data and
            with the same settings but for those of its variant; two are of one seed of one variant; or a group has no base run.
    """
    groups: dict[str, dict[Path, RunRecord]] = {}
    for path in sorted(folder.glob("*.json")):
        record = read_record(path)
        _check(record, path)
        groups.setdefault(_base_name(record), {})[path] = record
    made = [_collection(name, found) for name, found in sorted(groups.items())]
    main = sorted(made, key=lambda group: (-group.num_queries(), -len(group.base), group.name))[:1]
    return (*main, *(group for group in made if group not in main))


def _base_name(record: RunRecord) -> str:
    middle = f"-{record.ablation}-{record.variant}" if record.ablation else ""
    return record.run.removesuffix(f"{middle}-s{record.seed}")


def _collection(name: str, found: dict[Path, RunRecord]) -> Collection:
    base = {path: record for path, record in found.items() if not record.ablation}
    if not base:
        raise DataError(
            f"{next(iter(found))} belongs to an ablation of {name!r}, but there is no base run {name}-s<seed> to compare it with: keep the records "
            "of the base run, whose 'ablation' is empty, beside those of its ablations."
        )
    _check_same_suite(found, base)
    _check_same_settings(found, base)
    ablations: dict[str, dict[str, tuple[RunRecord, ...]]] = {}
    for ablation, variant in sorted({(record.ablation, record.variant) for record in found.values() if record.ablation}):
        members = {path: record for path, record in found.items() if (record.ablation, record.variant) == (ablation, variant)}
        ablations.setdefault(ablation, {})[variant] = _by_seed(members)
    return Collection(name=name, base=_by_seed(base), ablations=ablations)


def _by_seed(records: dict[Path, RunRecord]) -> tuple[RunRecord, ...]:
    seen: dict[int, Path] = {}
    for path, record in records.items():
        if record.seed in seen:
            what = f"variant {record.variant!r} of {record.ablation!r}" if record.ablation else "the base run"
            raise DataError(f"{path} and {seen[record.seed]} are both seed {record.seed} of {what}: remove one.")
        seen[record.seed] = path
    return tuple(sorted(records.values(), key=lambda record: record.seed))


def _check(record: RunRecord, path: Path) -> None:
    if not record.tasks:
        raise DataError(f"{path} holds no test task: evaluate the run again.")
    for task in record.tasks:
        wrong = _first_wrong(task)
        if wrong:
            raise DataError(f"{path}: task {task.name}: {wrong}: evaluate the run again.")


def _first_wrong(task: TaskRecord) -> str:
    if not task.keys:
        return "it holds no query"
    missing = [mode for mode in NEEDED if mode not in task.values]
    if missing:
        return f"values lack the mode {missing[0]!r}"
    for mode, values in task.values.items():
        if any(mode not in of_mode for of_mode in (task.query_tokens, task.candidate_tokens, task.query_think_rate, task.candidate_think_rate)):
            return f"tokens or think rates lack the mode {mode!r}"
        if len(values) != len(task.keys):
            return f"values of {mode!r} are {len(values)} for {len(task.keys)} queries"
    sides: dict[str, tuple[int, tuple[Sequence[float], ...]]] = {
        "queries": (len(task.keys), (task.gain, task.gate_probability, task.thought_tokens)),
        "candidates": (len(task.candidate_keys), (task.candidate_gain, task.candidate_gate_probability, task.candidate_thought_tokens)),
    }
    for side, (number, columns) in sides.items():
        if any(len(column) != number for column in columns):
            return f"gains, probabilities and thoughts of its {number} {side} are {', '.join(str(len(column)) for column in columns)}"
    return ""


def _check_same_suite(found: dict[Path, RunRecord], base: dict[Path, RunRecord]) -> None:
    first_path, first = next(iter(base.items()))
    expected = {task.name: (task.kind, task.side, task.keys) for task in first.tasks}
    for path, record in found.items():
        given = {task.name: (task.kind, task.side, task.keys) for task in record.tasks}
        differing = sorted(name for name in {*expected, *given} if expected.get(name) != given.get(name))
        if differing:
            raise DataError(
                f"{path} was not made on the same test queries as {first_path} (first difference: task {differing[0]}), so that they cannot be "
                "compared: evaluate both with the same suite."
            )


def _check_same_settings(found: dict[Path, RunRecord], base: dict[Path, RunRecord]) -> None:
    first_path, first = next(iter(base.items()))
    for path, record in found.items():
        own = {override.partition("=")[0] for override in ABLATIONS.get(record.ablation, {}).get(record.variant, ())}
        for name, given in record.provenance.items():
            expected = first.provenance.get(name, given)
            if given != expected and name not in own and (name in _SHARED or name.startswith("stages.")):
                raise DataError(
                    f"{path} was made with {name} {given}, but {first_path} with {expected}, so that they cannot be compared: remove the older "
                    "records, and train both with the same sweep."
                )
