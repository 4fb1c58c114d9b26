"""How a row of each kind of file becomes a query, its labels and its candidates.

Every function takes the row and the reader of its task. ``PARSERS`` names them, with the columns that they read.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from datamodules.mmeb.questions import parse_activitynetqa, parse_egoschema, parse_mvbench, parse_nextqa, parse_videomme
from datamodules.mmeb.reading import MEND_ROW, Offer, Parsed, Row, RowError, TaskReader, clean, shown
from datamodules.mmeb.table import label_list
from twn_lightning.batches import Item


def parse_image_to_text(row: Row, reader: TaskReader) -> Parsed:
    """A picture against texts (classification, questions, captions); the first text is right."""
    texts = row.texts("tgt_text")
    item = Item(
        text=clean(row.optional_text("qry_text")),
        images=(reader.media.image(row.identifier("qry_img_path")),),
        instruction=reader.query_instruction(row.optional_text("qry_inst")),
    )
    return Parsed(item, {texts[0]: 1.0}, [Offer(key=text, text=clean(text)) for text in texts])


def parse_text_to_image(row: Row, reader: TaskReader) -> Parsed:
    """A text against pictures, which may have captions; the first picture is right."""
    item = Item(text=clean(row.optional_text("qry_text")), instruction=reader.query_instruction(row.optional_text("qry_inst")))
    offers = [
        offer._replace(key=path) if reader.profile.first_caption_wins or not offer.text else offer
        for offer, path in zip(_pictures(row, reader), row.texts("tgt_img_path"), strict=True)
    ]
    return Parsed(item, {offers[0].key: 1.0}, offers)


def parse_image_to_image(row: Row, reader: TaskReader) -> Parsed:
    """A picture and words against pictures (composed retrieval, grounding), which may have captions; the first picture is right."""
    item = Item(
        text=clean(row.optional_text("qry_text")),
        images=(reader.media.image(row.identifier("qry_img_path")),),
        instruction=reader.query_instruction(row.optional_text("qry_inst")),
    )
    offers = _pictures(row, reader)
    return Parsed(item, {offers[0].key: 1.0}, offers)


def _pictures(row: Row, reader: TaskReader) -> list[Offer]:
    captions, paths = row.texts("tgt_text"), row.texts("tgt_img_path")
    if len(captions) != len(paths):
        raise RowError(f"tgt_text has {len(captions)} entries, but tgt_img_path has {len(paths)}", MEND_ROW)
    instruction = reader.candidate_instruction(row.optional_text("tgt_inst"))
    return [
        Offer(
            key=f"{path}:{caption.strip(chr(34))}",
            text=clean(caption) if caption.strip() else "",
            image=reader.media.image(path),
            instruction=instruction,
        )
        for path, caption in zip(paths, captions, strict=True)
    ]


def parse_ssv2(row: Row, reader: TaskReader) -> Parsed:
    """A video against descriptions of what happens; ``neg_text`` holds them all, the right one too."""
    positive, texts = row.text("pos_text"), row.texts("neg_text")
    if positive not in texts:
        raise RowError(f"pos_text is {shown(positive)}, which neg_text does not hold, so the row has no label", "download the data set again")
    item = Item(video=reader.media.video(row.identifier("video_id")), instruction=reader.query_instruction())
    return Parsed(item, {positive: 1.0}, [Offer(key=text, text=clean(text)) for text in texts])


def parse_video_class(row: Row, reader: TaskReader) -> Parsed:
    """A video against a fixed list of labels, taken as they are spelt in the data set."""
    label = row.text("pos_text")
    if label not in label_list(reader.task.labels):
        raise RowError(f"pos_text is {shown(label)}, which is not in the list {reader.task.labels}", MEND_ROW)
    item = Item(video=reader.media.video(row.identifier("video_id")), instruction=reader.query_instruction())
    return Parsed(item, {label: 1.0}, [])


def parse_msrvtt(row: Row, reader: TaskReader) -> Parsed:
    """A caption against the videos of all rows."""
    key = row.identifier("video_id")
    return _video_of_caption(reader, row.text("caption"), key, reader.media.video(key, row.identifier("video")))


def parse_msvd(row: Row, reader: TaskReader) -> Parsed:
    """The first caption against the videos of all rows."""
    key = row.identifier("video_id")
    return _video_of_caption(reader, row.texts("caption")[0], key, reader.media.video(key, row.identifier("video")))


def parse_didemo(row: Row, reader: TaskReader) -> Parsed:
    """A caption against the videos of all rows, named after their files."""
    file = PurePosixPath(row.identifier("video"))
    return _video_of_caption(reader, row.text("caption"), file.stem, reader.media.video(file.stem, file.name))


def parse_youcook2(row: Row, reader: TaskReader) -> Parsed:
    """A step of a recipe against the clips of all rows."""
    key = row.identifier("id")
    return _video_of_caption(reader, row.text("sentence"), key, reader.media.video(key, PurePosixPath(row.identifier("video_path")).name))


def parse_vatex(row: Row, reader: TaskReader) -> Parsed:
    """The first English caption against the videos of all rows."""
    key = row.identifier("videoID")
    return _video_of_caption(reader, row.texts("enCap")[0], key, reader.media.video(key))


def _video_of_caption(reader: TaskReader, caption: str, key: str, video: Path) -> Parsed:
    item = Item(text=clean(caption), instruction=reader.query_instruction())
    return Parsed(item, {key: 1.0}, [Offer(key=key, video=video, instruction=reader.candidate_instruction())])


def parse_moment(row: Row, reader: TaskReader) -> Parsed:
    """A text and a video against its clips: the folders beside the folder ``query``, of which those named ``positive…`` are right."""
    name = PurePosixPath(row.identifier("video_path")).stem
    folder = next((place for place in reader.media.folders(name) if place.is_dir()), None)
    if folder is None:
        places = " or ".join(str(place) for place in reader.media.folders(name))
        raise RowError(f"the folder of frames {places} does not exist", "unpack the frames there again")
    clips = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and entry.name != "query")
    positives = [clip for clip in clips if clip.startswith("positive")]
    if not positives:
        raise RowError(f"{folder} holds no folder positive…, so the row has no label", "unpack the frames there again")
    item = Item(text=clean(row.text("query")), video=reader.media.video(f"{name}/query"), instruction=reader.query_instruction())
    instruction = reader.candidate_instruction()
    offers = [Offer(key=f"{name}/{clip}", video=reader.media.video(f"{name}/{clip}"), instruction=instruction) for clip in clips]
    return Parsed(item, {f"{name}/{clip}": 1.0 for clip in positives}, offers)


def parse_momentseeker(row: Row, reader: TaskReader) -> Parsed:
    """A text, alone or with a picture or a clip, against clips, of which several may be right."""
    text, shown_beside = clean(row.text("query")), row.optional_text("input_frames")
    if shown_beside.endswith(".mp4"):
        video = reader.media.video(f"video_frames/{_flat(shown_beside)}")
        item = Item(text=text, video=video, instruction=reader.query_instruction(kind="video"))
    elif shown_beside.endswith(".jpg"):
        item = Item(text=text, images=(reader.media.image(f"query_{shown_beside}"),), instruction=reader.query_instruction(kind="image"))
    elif not shown_beside:
        item = Item(text=text, instruction=reader.query_instruction())
    else:
        raise RowError(f"input_frames is {shown_beside!r}, but must be empty, or end in .jpg or .mp4", MEND_ROW)
    positives = [_flat(path) for path in row.entries("positive_frames", "output_path")]
    if not positives:
        raise RowError("positive_frames is empty, so the row has no label", MEND_ROW)
    negatives = [_flat(path) for path in row.entries("negative_frames", "output_path")]
    instruction = reader.candidate_instruction()
    offers = [Offer(key=name, video=reader.media.video(f"video_frames/{name}"), instruction=instruction) for name in (*positives, *negatives)]
    return Parsed(item, dict.fromkeys(positives, 1.0), offers)


def _flat(path: str) -> str:
    """Name of the folder of frames of a clip: its path with underscores."""
    return path.split(".mp4", maxsplit=1)[0].replace("/", "_")


@dataclass(frozen=True)
class Parser:
    """How a kind of row is read.

    Attributes:
        columns: What it reads.
        parse: What it makes of it.
    """

    columns: tuple[str, ...]
    parse: Callable[[Row, TaskReader], Parsed]


_TEXT_CANDIDATES = ("qry_inst", "qry_text", "qry_img_path", "tgt_text")
_PICTURE_CANDIDATES = ("tgt_inst", "tgt_text", "tgt_img_path")

PARSERS: dict[str, Parser] = {
    "image_cls": Parser(_TEXT_CANDIDATES, parse_image_to_text),
    "image_qa": Parser(_TEXT_CANDIDATES, parse_image_to_text),
    "image_i2t": Parser(_TEXT_CANDIDATES, parse_image_to_text),
    "image_t2i": Parser(("qry_inst", "qry_text", *_PICTURE_CANDIDATES), parse_text_to_image),
    "image_i2i_vg": Parser(("qry_inst", "qry_text", "qry_img_path", *_PICTURE_CANDIDATES), parse_image_to_image),
    "ssv2": Parser(("video_id", "pos_text", "neg_text"), parse_ssv2),
    "video_classification": Parser(("video_id", "pos_text"), parse_video_class),
    "msrvtt": Parser(("video_id", "video", "caption"), parse_msrvtt),
    "msvd": Parser(("video_id", "video", "caption"), parse_msvd),
    "didemo": Parser(("video", "caption"), parse_didemo),
    "youcook2": Parser(("id", "video_path", "sentence"), parse_youcook2),
    "vatex": Parser(("videoID", "enCap"), parse_vatex),
    "moment_retrieval": Parser(("query", "video_path"), parse_moment),
    "momentseeker": Parser(("query", "positive_frames", "negative_frames", "input_frames"), parse_momentseeker),
    "videomme": Parser(("question", "videoID", "options", "answer"), parse_videomme),
    "nextqa": Parser(("video", "question", "answer", "a0", "a1", "a2", "a3", "a4"), parse_nextqa),
    "egoschema": Parser(("video_idx", "question", "answer", "option"), parse_egoschema),
    "mvbench": Parser(("question", "video", "candidates", "answer"), parse_mvbench),
    "activitynetqa": Parser(("video_name", "question", "answer"), parse_activitynetqa),
}
"""By `TaskRow.parser`; ``vidore`` and ``visrag`` are tables of pages, which `datamodules.mmeb.pages` reads."""
