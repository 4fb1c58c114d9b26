"""The tasks of MMEB-mini: one row each, made of a few functions that draw the query and the candidates.

Composing tasks ask for an answer that was never trained for the held-out subjects, although everything it takes was: seeing
the flag, and knowing the capital. The functions are in `objects`, `flags`, `digits`, `scenes` and `motions`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from datamodules.mini import digits, flags, motions, objects, scenes
from datamodules.mini.assets import STYLES
from datamodules.mini.sides import Random, Side, Subject, graded_at, text_candidate
from datamodules.mini.splits import Split

__all__ = ["AUXILIARY", "TASKS", "MiniTask", "Random", "Side", "Subject"]


@dataclass(frozen=True)
class MiniTask:
    """How one task asks and answers.

    Attributes:
        name: As in the results table.
        modality: MMEB-V2's modality group.
        subgroup: MMEB-V2's meta-task.
        kind: ``composing`` if thinking should help, ``plain`` if it should not be needed; decided before any run, never read by the model.
        side: Where a composing task has something to work out: on the ``query``, or on each ``candidate``, as when a picture is asked for by the
            sum of what it shows; empty on plain tasks. Decided before any run as well, never read by the model.
        metric: Headline metric.
        subjects: What is asked in a split.
        query: Draws the query of a subject.
        grades: The relevant candidates of a subject, the best first; training draws its positive in proportion to them.
        candidate: Draws a candidate by key.
        corpus: Candidate keys of a split.
        local: The candidates of one query, where each query brings its own.
        repeats: How many queries a subject gets in validation and test, drawn anew each time.
        target: What makes candidates equally right, of a candidate's key: the sum of two digits, where any two with that sum would do.
    """

    name: str
    modality: Literal["image", "video", "visdoc"]
    subgroup: str
    kind: Literal["composing", "plain"]
    side: Literal["query", "candidate", ""]
    metric: Literal["hit@1", "ndcg@5"]
    subjects: Callable[[Split], Sequence[Subject]]
    query: Callable[[Subject, Split, Random], Side]
    grades: Callable[[Subject], Mapping[str, float]]
    candidate: Callable[[str, Split, Random | None], Side]
    corpus: Callable[[Split], Sequence[str]]
    local: Callable[[Subject, Random], Sequence[str]] | None = None
    repeats: int = 1
    target: Callable[[str], str] = lambda key: key


TASKS: dict[str, MiniTask] = {
    task.name: task
    for task in (
        MiniTask(
            "EmojiName",
            "image",
            "IMG_CLS",
            "plain",
            "",
            "hit@1",
            subjects=objects.object_subjects,
            query=objects.object_name_query,
            grades=graded_at(0),
            candidate=text_candidate,
            corpus=objects.object_names,
            local=objects.local_object_names,
        ),
        MiniTask(
            "FlagName",
            "image",
            "IMG_CLS",
            "plain",
            "",
            "hit@1",
            subjects=flags.flag_subjects,
            query=flags.flag_query("Which country?", with_capital=False),
            grades=graded_at(0),
            candidate=text_candidate,
            corpus=flags.country_names,
        ),
        MiniTask(
            "FlagCapital",
            "image",
            "IMG_QA",
            "composing",
            "query",
            "hit@1",
            subjects=flags.capital_subjects,
            query=flags.flag_query("Which capital?", with_capital=True),
            grades=graded_at(2),
            candidate=text_candidate,
            corpus=flags.capital_names,
        ),
        MiniTask(
            "DigitRead",
            "image",
            "IMG_QA",
            "plain",
            "",
            "hit@1",
            subjects=digits.digit_subjects(held_out=False),
            query=digits.digit_query("Which digits?", with_sum=False, clip=False),
            grades=digits.pair_grades,
            candidate=text_candidate,
            corpus=digits.pair_texts,
        ),
        MiniTask(
            "DigitSum",
            "image",
            "IMG_QA",
            "composing",
            "query",
            "hit@1",
            subjects=digits.digit_subjects(held_out=True),
            query=digits.digit_query("Which sum?", with_sum=True, clip=False),
            grades=digits.total_grades,
            candidate=text_candidate,
            corpus=digits.total_texts,
            repeats=4,
        ),
        MiniTask(
            "PictureBySum",
            "image",
            "IMG_RET",
            "composing",
            "candidate",
            "hit@1",
            subjects=digits.digit_subjects(held_out=True),
            query=digits.by_sum_query("Find the picture with sum"),
            grades=digits.by_sum_grades,
            candidate=digits.by_sum_candidate(clip=False),
            corpus=digits.by_sum_corpus,
            local=digits.by_sum_local,
            repeats=4,
            target=digits.by_sum_target,
        ),
        MiniTask(
            "EmojiT2I",
            "image",
            "IMG_RET",
            "plain",
            "",
            "hit@1",
            subjects=objects.object_subjects,
            query=objects.object_picture_query,
            grades=objects.object_grades,
            candidate=objects.object_candidate,
            corpus=objects.object_keys,
            local=objects.local_object_keys,
        ),
        MiniTask(
            "SceneFind",
            "image",
            "IMG_VG",
            "plain",
            "",
            "hit@1",
            subjects=scenes.scene_subjects,
            query=scenes.scene_query(next_one=False),
            grades=scenes.scene_grades(next_one=False),
            candidate=scenes.crop_candidate,
            corpus=scenes.scene_corpus,
            local=scenes.scene_local,
        ),
        MiniTask(
            "SceneNext",
            "image",
            "IMG_VG",
            "composing",
            "query",
            "hit@1",
            subjects=scenes.scene_subjects,
            query=scenes.scene_query(next_one=True),
            grades=scenes.scene_grades(next_one=True),
            candidate=scenes.crop_candidate,
            corpus=scenes.scene_corpus,
            local=scenes.scene_local,
        ),
        MiniTask(
            "ClipMotion",
            "video",
            "V_CLS",
            "plain",
            "",
            "hit@1",
            subjects=motions.motion_subjects,
            query=motions.motion_query,
            grades=motions.motion_grades,
            candidate=text_candidate,
            corpus=motions.motion_texts,
            local=motions.motion_local,
            repeats=3,
        ),
        MiniTask(
            "ClipByMotion",
            "video",
            "V_RET",
            "plain",
            "",
            "hit@1",
            subjects=motions.motion_subjects,
            query=motions.by_motion_query,
            grades=motions.motion_grades,
            candidate=motions.motion_candidate,
            corpus=motions.motion_texts,
            local=motions.motion_local,
            repeats=3,
        ),
        MiniTask(
            "ClipBySum",
            "video",
            "V_RET",
            "composing",
            "candidate",
            "hit@1",
            subjects=digits.digit_subjects(held_out=True),
            query=digits.by_sum_query("Find the clip with sum"),
            grades=digits.by_sum_grades,
            candidate=digits.by_sum_candidate(clip=True),
            corpus=digits.by_sum_corpus,
            local=digits.by_sum_local,
            repeats=4,
            target=digits.by_sum_target,
        ),
        MiniTask(
            "MomentFind",
            "video",
            "V_MRET",
            "plain",
            "",
            "hit@1",
            subjects=scenes.scene_subjects,
            query=scenes.moment_query(next_one=False),
            grades=scenes.scene_grades(next_one=False),
            candidate=scenes.moment_candidate,
            corpus=scenes.scene_corpus,
            local=scenes.scene_local,
        ),
        MiniTask(
            "MomentNext",
            "video",
            "V_MRET",
            "composing",
            "query",
            "hit@1",
            subjects=scenes.scene_subjects,
            query=scenes.moment_query(next_one=True),
            grades=scenes.scene_grades(next_one=True),
            candidate=scenes.moment_candidate,
            corpus=scenes.scene_corpus,
            local=scenes.scene_local,
        ),
        MiniTask(
            "ClipSum",
            "video",
            "V_QA",
            "composing",
            "query",
            "hit@1",
            subjects=digits.digit_subjects(held_out=True),
            query=digits.digit_query("Which sum?", with_sum=True, clip=True),
            grades=digits.total_grades,
            candidate=text_candidate,
            corpus=digits.total_texts,
            repeats=4,
        ),
        MiniTask(
            "PageByName",
            "visdoc",
            "VISDOC",
            "plain",
            "",
            "ndcg@5",
            subjects=flags.page_subjects(everywhere=True),
            query=flags.page_query("name"),
            grades=flags.page_grades,
            candidate=flags.page_candidate(STYLES),
            corpus=flags.page_corpus,
        ),
        MiniTask(
            "PageByCapital",
            "visdoc",
            "VISDOC",
            "composing",
            "query",
            "ndcg@5",
            subjects=flags.page_subjects(everywhere=False),
            query=flags.page_query("capital"),
            grades=flags.page_grades,
            candidate=flags.page_candidate(("twemoji",)),
            corpus=flags.page_corpus,
        ),
    )
}
"""Every task by name."""

AUXILIARY: dict[str, MiniTask] = {
    task.name: task
    for task in (
        MiniTask(
            "CapitalOf",
            "image",
            "",
            "plain",
            "",
            "hit@1",
            subjects=flags.fact_subjects,
            query=flags.fact_query,
            grades=graded_at(1),
            candidate=text_candidate,
            corpus=flags.capital_names,
        ),
        MiniTask(
            "SumOf",
            "image",
            "",
            "plain",
            "",
            "hit@1",
            subjects=digits.digit_subjects(held_out=False),
            query=digits.addition_query,
            grades=digits.total_grades,
            candidate=text_candidate,
            corpus=digits.total_texts,
        ),
    )
}
"""Training pairs that no task asks for: facts in words, so that every answer was embedded and every fact said before a picture asks for it."""
