"""Puts the page together: sections in their order, each with its pictures, or one line that says what the records lack."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from matplotlib.figure import Figure

from experiments.results_page import ablations, claim, examples, numbers, pictures
from experiments.results_page.ablations import Compared
from experiments.results_page.collection import Collection
from experiments.results_page.words import cell, change, commits, listed, number, percent, table, with_interval

INTRODUCTION = """\
<!-- Written by `python -m experiments.results_page` from the records in docs/results/records; changes by hand are lost. -->

# Results

When does thinking help an embedding? Every figure, picture and sentence below is computed from the records of finished runs.

* **Score**: 0 to 100, the mean over test tasks of each task's metric; a tie counts against the model.
* **Think modes**: *never*, *always*: no input thinks, or all queries and candidates do. *auto*: the gate decides for each input. *oracle*: for
  each query the better of never and always; one query that is better with thinking makes all of its task's candidates think. *random*: in each
  task and on each of its sides, as many inputs think as under auto, chosen at random: what auto has over it is what the gate knows of single
  inputs, beyond their task. *confidence*: in each task as many queries think as under auto, those with the smallest margin between their two best
  candidates; candidates as under auto.
* **Tokens a query**: reasoning tokens of all queries and candidates, each candidate once, divided by the number of queries.
* **[low, high]**: 95 % interval over seeds (Student's t of their means) and test queries (standard error), added as squares; of one seed over
  queries alone. Differences are paired by seed and query. A difference in **bold** has an interval that excludes 0.
* **Plain and composing** tasks were named before any run: on composing ones thinking should pay, on plain ones it should not be needed."""


@dataclass
class Page:
    """A page in the making.

    Attributes:
        lines: Markdown.
        pictures: File name → figure.
        folder: Where the pictures lie, as seen from the page.
    """

    folder: str
    lines: list[str] = field(default_factory=list)
    pictures: dict[str, Figure] = field(default_factory=dict)

    def add(self, *lines: str) -> None:
        """A paragraph, a table or a list."""
        self.lines += [*lines, ""]

    def section(self, title: str) -> None:
        """Begin a section."""
        self.add(f"## {title}")

    def picture(self, name: str, figure: Figure | None, caption: str, missing: str) -> None:
        """A picture with its caption, or a line that says what the records lack.

        Args:
            name: Of the file, without its ending.
            figure: None where there is nothing to show.
            caption: What it shows.
            missing: What the records lack where there is nothing.
        """
        if figure is None:
            self.add(f"*{missing}*")
            return
        self.pictures[f"{name}.png"] = figure
        self.add(f"![{caption}]({self.folder}/{name}.png)")

    def markdown(self) -> str:
        """The page's text."""
        return "\n".join(self.lines).rstrip() + "\n"


def make_page(groups: Sequence[Collection], *, folder: str = "results") -> Page:
    """The whole page.

    Args:
        groups: The records, the main group first.
        folder: Where the pictures will lie, as seen from the page.
    """
    page = Page(folder)
    page.add(INTRODUCTION)
    if not groups:
        page.add(
            "There are no records yet. `python -m experiments.sweep queries --run mini --seeds 1,2,3 --collect` trains runs and collects theirs."
        )
        return page
    main, *others = groups
    _runs(page, main, others)
    sections: Sequence[Callable[[Page, Collection], None]] = (_claim, _tasks, _gate, _sides)
    for section in sections:
        section(page, main)
    holders = [group for group in groups if group.ablations] or [main]
    if holders == [main]:
        _comparisons(page, main, holders)
    _training(page, main)
    if holders[0] is not main:
        _rewards(page, main, "rewards")
    _examples(page, main)
    if holders != [main]:
        _comparisons(page, main, holders)
    return page


def _comparisons(page: Page, main: Collection, holders: Sequence[Collection]) -> None:
    """Ablations and rivals of the groups that hold some; where none does, what is missing."""
    for holder in holders:
        _ablations(page, holder, main, suffix="" if holder is holders[0] else f"_{holder.name}")
    rivals = [holder for holder in holders if ablations.RIVALS in holder.ablations] or [main]
    for holder in rivals:
        _rivals(page, holder, main, suffix="" if holder is rivals[0] else f"_{holder.name}")


# --- what was run ---------------------------------------------------------------------------------------------------------------


def _runs(page: Page, collection: Collection, others: Sequence[Collection]) -> None:
    base = collection.base
    page.section("What was run")
    rows = [
        ["base run", f"{cell(collection.name)}, seeds {listed(str(record.seed) for record in base)}"],
        ["records", _counted(collection)],
        ["test tasks", f"{len(base[0].tasks)} with {collection.num_queries():,} queries"],
        *(
            [title, cell(commits(record.provenance.get(key, "") for record in collection.records()))]
            for title, key in (("trained at commit", "commit.trained"), ("evaluated at commit", "commit"))
        ),
        *(
            [title, _told(collection, key)]
            for title, key in (
                ("data", "data_revision"),
                ("machine", "platform"),
                ("device", "device"),
            )
        ),
        ["versions", _versions(collection)],
        ["parameters", _parameters(collection)],
        ["seconds of training (more where other runs were beside it)", _seconds(collection)],
        ["gate's threshold", f"{listed(f'{number(record.threshold, 4)} (seed {record.seed})' for record in base)}, chosen on validation tasks"],
        *(
            [
                "base run of comparisons",
                f"{cell(group.name)}, seeds {listed(str(record.seed) for record in group.base)}; {len(group.task_names())} test tasks with "
                f"{group.num_queries():,} queries; records: {_counted(group)}",
            ]
            for group in others
        ),
    ]
    page.add(*table(["what", "value"], [row for row in rows if row[1]], left=2))
    if len(base) == 1:
        page.add("There is one seed, so that the intervals hold the spread over test queries alone: seeds are not in them.")
    again = [f"{line} --collect   # trains" for group in (collection, *others) for line in ablations.commands(group)]
    page.add("This page from its records, and the records from nothing:", "", "```bash", "python -m experiments.results_page", *again, "```")


def _counted(collection: Collection) -> str:
    num_records, num_base, count = len(list(collection.records())), len(collection.base), len(collection.ablations)
    return f"{num_records}: {num_base} of the base run, {num_records - num_base} of {count} ablation{'s' if count != 1 else ''}"


def _told(collection: Collection, key: str) -> str:
    """What the records' provenance says under a key, each value once."""
    found = dict.fromkeys(record.provenance[key] for record in collection.records() if record.provenance.get(key))
    return cell("; ".join(sorted(found))) if found else ""


def _versions(collection: Collection) -> str:
    keys = sorted({key for record in collection.records() for key in record.provenance if key.startswith("version.")})
    parts = [f"{key.removeprefix('version.')} {_told(collection, key)}" for key in keys]
    python = _told(collection, "python")
    return ", ".join(([f"Python {python}"] if python else []) + parts)


def _parameters(collection: Collection) -> str:
    counts = collection.base[0].parameters
    left_out = ("ratio", "trainable")  # the latter is of the last step alone
    parts = [f"{cell(name)} {count:,.0f}" for name, count in counts.items() if name not in left_out]
    if "ratio" in counts:
        parts.append(f"added to the frozen backbone: {percent(counts['ratio'], 1)} of it")
    return ", ".join(parts)


def _seconds(collection: Collection) -> str:
    steps = dict.fromkeys(step for record in collection.base for step in record.seconds)
    means = {step: numbers.mean(record.seconds.get(step, 0.0) for record in collection.base) for step in steps}
    parts = [f"{cell(step)} {value:,.0f}" for step, value in means.items()]
    return f"{sum(means.values()):,.0f} a seed ({', '.join(parts)})" if parts else ""


# --- the claim ------------------------------------------------------------------------------------------------------------------


def _claim(page: Page, collection: Collection) -> None:
    page.section("The claim")
    page.add(*claim.verdict_lines(claim.verdicts(collection)))
    page.add(*claim.mode_lines(collection))
    page.add(*claim.difference_lines(collection))
    page.add(claim.where_thinking_pays(collection))
    page.picture(
        "trade_off", pictures.trade_off(collection), "Mean score against reasoning tokens a query: the gate's thresholds and the think modes", ""
    )
    if not all(record.sweep for record in collection.base):
        page.add("*The records hold no threshold sweep, so the picture has no curve.*")
    missing = [mode for mode in claim.MODES if not numbers.has_mode(collection.base, mode)]
    if missing:
        page.add(f"*The records were not scored in {listed(missing)}.*")
    found = numbers.budgets(collection.base, collection.task_names())
    if found:
        page.add("Budgets, tokens a query (mean over seeds):")
        rows = [[number(each.asked), number(each.mean_spent), percent(each.miss, 1)] for each in found]
        page.add(*table(["asked", "spent on the test tasks", "off by"], rows, left=0))
        if any(each.due < each.asked for each in found):
            page.add("A budget above what always spends is compared with that.")
    page.picture("budgets", pictures.budgets(collection), "Tokens spent against the budget asked for", "The records hold no budgets.")


# --- tasks ----------------------------------------------------------------------------------------------------------------------


def _tasks(page: Page, collection: Collection) -> None:
    page.section("Task by task")
    base = collection.base
    rows = []
    for task in base[0].tasks:
        names = (task.name,)
        scores = [with_interval(numbers.score_interval(base, mode, names)) for mode in ("never", "always", "auto")]
        oracle = number(numbers.score(base, "oracle", names)) if numbers.has_mode(base, "oracle") else "–"
        rates = " / ".join(percent(numbers.think_rate(base, "auto", names, side)) for side in ("query", "candidate"))
        spent = f"{number(numbers.tokens(base, 'auto', names))} ({number(numbers.tokens(base, 'always', names))})"
        kind = f"{task.kind} ({task.side})" if task.side else task.kind
        gain = change(numbers.difference(base, "always", base, "never", names))
        rows.append([task.name, kind, task.metric, str(len(task.keys)), *scores, oracle, gain, rates, spent])
    head = ["task", "kind (side)", "metric", "queries", "never", "always", "auto", "oracle", "always − never", "thinks", "tokens a query"]
    page.add(*table(head, rows, left=3))
    page.add("Thinks: share of queries / of candidates that think under auto. Tokens a query: auto (always).")
    page.picture("tasks", pictures.bars(collection), "Scores of each task under never, always and auto, with 95 % intervals", "")
    page.picture(
        "gains",
        pictures.gains(collection),
        "What a thought brought, in nats: one histogram for each task, all seeds together",
        "The records hold no gains.",
    )


def _gate(page: Page, collection: Collection) -> None:
    page.section("The gate")
    margin, dead_zone = numbers.label_rule(collection.base[0])
    page.add(
        f"An input counts as helped if its own thought gains more than {number(margin, 2)} nats. Gains closer than {number(dead_zone, 2)} nats to 0 "
        "are left out, as when the gate was trained. Inputs: all queries, and all candidates that some query is to find. The threshold is the "
        "cheapest whose score on the validation tasks lies within `stages.gate.tolerance` of the best, not the probability from which a gain is "
        "likelier than not. Brier skill score: 1 less the gate's Brier score as a share of that of always saying how often thinking helped; 1 is "
        "perfect, 0 no better than that, below 0 worse."
    )
    page.add(*claim.gate_lines(collection))
    caption = "The gate's probability against how often thinking helped, with the number of inputs in each bin"
    page.picture("reliability", pictures.reliability(collection), caption, "The records hold no gains, so the gate cannot be judged.")


# --- comparisons ----------------------------------------------------------------------------------------------------------------


def _sides(page: Page, collection: Collection) -> None:
    page.section("Which side thinks")
    if all(numbers.has_mode(collection.base, mode) for mode in ("query", "candidate")):
        page.add(*ablations.side_lines(collection))
    else:
        page.add("*The records were not scored with one side thinking alone.*")


def _ablations(page: Page, collection: Collection, main: Collection, *, suffix: str) -> None:
    page.section(f"Ablations of the base run {cell(collection.name)}" if suffix else "Ablations")
    if collection is not main:
        page.add(ablations.base_line(collection, main))
    found = {ablation: ablations.compared(collection, ablation) for ablation in collection.ablations if ablation != ablations.RIVALS}
    if not found:
        page.add("*The records hold no ablations.*")
    else:
        page.add("In brackets: the difference to the base runs of the same seeds, paired by query.")
        shown: dict[str, Sequence[Compared]] = {ablation: rows for ablation, rows in found.items() if rows}
        page.picture(
            f"ablations{suffix}",
            pictures.forest(collection, shown),
            "Difference of every variant to the base run under auto",
            "No variant shares a seed with the base run.",
        )
    for ablation, rows in found.items():
        page.add(f"### {cell(ablation)}")
        page.add(*ablations.ablation_lines(collection, ablation, rows))
        if ablation == "dual_lora":
            page.add(*ablations.dual_lora_lines(collection))
    brought = ablations.grpo_lines(collection)
    page.add("### What stage 4 brings")
    page.add(*(brought or ["*The records hold neither a variant without stage 4 nor its reward curve.*"]))
    _rewards(page, collection, "rewards" if collection is main else f"rewards_{collection.name}")


def _rewards(page: Page, collection: Collection, name: str) -> None:
    caption = "Parts of the reward, their sum, KL and length of thoughts over stage 4"
    page.picture(name, pictures.rewards(collection), caption, "The records hold no curves of stage 4.")


def _rivals(page: Page, collection: Collection, main: Collection, *, suffix: str) -> None:
    page.section(f"Other methods as settings, beside {cell(collection.name)}" if suffix else "Other methods as settings")
    if collection is not main:
        page.add(ablations.base_line(collection, main))
    if ablations.RIVALS not in collection.ablations:
        page.add("*The records hold no rivals.*")
        return
    page.add(
        "Each row is one idea of a published method, set up in this framework on the same backbone, data and steps, in the mode that it would be "
        "used in: -like, not the published models or their figures."
    )
    page.add(*ablations.rival_lines(collection))


def _training(page: Page, collection: Collection) -> None:
    page.section("Training")
    caption = "Learning curves of the four stages"
    page.picture("learning", pictures.learning(collection), caption, "The records hold no learning curves.")
    found = {stage: pictures.by_source(collection, stage) for stage in pictures.STAGES}
    for stage, figure in found.items():
        if figure is not None:
            what = "Reward" if stage == "grpo" else "Loss"
            page.picture(f"sources_{stage}", figure, f"{what} by data source, {pictures.STAGES[stage]}", "")
    if not any(found.values()):
        page.add("*The records hold no curves by data source.*")


def _examples(page: Page, collection: Collection) -> None:
    page.section("Thoughts that helped, thoughts that misled")
    helped, misled = examples.chosen_examples(collection)
    if not helped and not misled:
        page.add("*The records hold no examples.*")
        return
    page.add(
        "Chosen by rule, one of each task: first where the best candidate turned from wrong to right (misled: from right to wrong), then by the size "
        "of the gain. The candidates do not think here."
    )
    figure = examples.example_figure([("Helped", helped), ("Misled", misled)])
    page.picture("examples", figure, "Queries with the thoughts that helped and those that misled", "")
    for title, chosen in (("Helped", helped), ("Misled", misled)):
        if chosen:
            page.add(f"{title}:", "", *examples.example_lines(chosen))
