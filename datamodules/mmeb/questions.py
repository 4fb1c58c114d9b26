"""Questions about videos: the options are part of the query's text, laid out as published evaluations lay them out, and they are the candidates."""

from __future__ import annotations

import re
from collections.abc import Sequence

from datamodules.mmeb.reading import MEND_ROW, Offer, Parsed, Row, RowError, TaskReader, clean, shown
from datamodules.mmeb.table import mvbench_folders
from twn_lightning.batches import Item

_LETTER = re.compile(r"[A-Z]\. ")


def parse_videomme(row: Row, reader: TaskReader) -> Parsed:
    """Options "A. text", a line each; they are encoded without their letter. The answer is a letter."""
    options, answer = row.texts("options"), row.text("answer")
    index = "ABCDEFGHIJ".find(answer) if len(answer) == 1 else -1
    text = "\n".join([row.text("question"), *options])
    return _question(reader, text, row.identifier("videoID"), options, index, answer, without_letter=True)


def parse_egoschema(row: Row, reader: TaskReader) -> Parsed:
    """Options "A. text" behind the question; they are encoded without their letter. The answer is a number, counted from 0."""
    options, answer = row.texts("option"), row.number("answer")
    text = row.text("question") + " ".join(options)
    return _question(reader, text, row.identifier("video_idx"), options, answer, str(answer), without_letter=True)


def parse_nextqa(row: Row, reader: TaskReader) -> Parsed:
    """Five options; the answer is a number, counted from 0."""
    options, answer = [row.text(f"a{number}") for number in range(5)], row.number("answer")
    return _question(reader, _lettered_question(row, options), row.identifier("video"), options, answer, str(answer))


def parse_mvbench(row: Row, reader: TaskReader) -> Parsed:
    """Options that get a letter, "(A) text", with which they are encoded; the answer is the text of one."""
    options, answer, video = row.texts("candidates"), row.text("answer"), row.identifier("video")
    index = options.index(answer) if answer in options else -1
    names = (f"{row.config}/{video}", f"{mvbench_folders()[row.config]}/{video}")
    text = _lettered_question(row, options)
    return _question(reader, text, names, _lettered(options), index, answer)


def parse_activitynetqa(row: Row, reader: TaskReader) -> Parsed:
    """Yes or no."""
    options, answer = ["yes", "no"], row.text("answer")
    index = options.index(answer) if answer in options else -1
    text = f"{row.text('question')}? (A) yes; (B) no."
    return _question(reader, text, f"v_{row.identifier('video_name')}", options, index, answer)


def _lettered(options: Sequence[str]) -> list[str]:
    return [f"({chr(ord('A') + index)}) {option}" for index, option in enumerate(options)]


def _lettered_question(row: Row, options: Sequence[str]) -> str:
    return "\n".join([row.text("question"), "Options:", *_lettered(options)]).rstrip()


def _question(
    reader: TaskReader, text: str, video: str | tuple[str, ...], options: Sequence[str], index: int, answer: str, *, without_letter: bool = False
) -> Parsed:
    """A question.

    Args:
        reader: Of its task.
        text: Question and options.
        video: Its possible names.
        options: The candidates' keys.
        index: Which one is right.
        answer: The answer as the row gives it, for the message.
        without_letter: Whether "A. " is left out of what is encoded.
    """
    if not 0 <= index < len(options):
        raise RowError(
            f"answer is {shown(answer)}, which is none of the {len(options)} options, so the row has no label",
            MEND_ROW,
        )
    names = (video,) if isinstance(video, str) else video
    item = Item(text=clean(text), video=reader.media.video(*names), instruction=reader.query_instruction())
    offers = [Offer(key=option, text=clean(_LETTER.sub("", option, count=1).strip(". ") if without_letter else option)) for option in options]
    return Parsed(item, {options[index]: 1.0}, offers)
