"""Makes a folder with all 78 tasks of MMEB-V2, a few rows each, in the layout and the columns of the published files.

    python tests/support/mmeb_tree.py FOLDER --rows 4

Needs the extra "mini"; takes some seconds. Pictures are at most 64 x 80 pixels. The same rows make the same bytes.
"""

from __future__ import annotations

import argparse
import json
import sys
import types
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

if __name__ == "__main__":  # a script does not see the repository, and an installed package may be called "tests" as well
    _REPOSITORY = Path(__file__).resolve().parents[2]
    sys.path.insert(0, str(_REPOSITORY))
    sys.modules["tests"] = types.ModuleType("tests")
    sys.modules["tests"].__path__ = [str(_REPOSITORY / "tests")]

from datamodules.mini.assets import Concept
from datamodules.mini.render import LAYOUTS
from datamodules.mmeb.table import TABLE, TaskRow, label_list, mvbench_folders
from tests.support import mmeb_media as media

Values: TypeAlias = dict[str, object]
T = TypeVar("T")

GRADED = ("ViDoRe_esg_reports_human_labeled_v2", "ViDoSeek-doc", "MMLongBench-doc")
"""Tasks of pages whose labels have grades 2 and 1."""

CAPTIONED = ("EDIS", "WebQA")
"""Tasks of pictures with captions: rows give the same picture other captions."""

_NUM_CANDIDATES = 6
_CLIPS = 9  # negatives of a moment task


def _right_first(values: Sequence[T], number: int) -> list[T]:
    """The right one first, as the published files have it, and others behind it."""
    return [values[(number + place) % len(values)] for place in range(_NUM_CANDIDATES)]


class Repositories:
    """Writes tables where the hub has them, and the READMEs that name their configurations.

    Args:
        root: The tree's folder.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._configs: dict[str, dict[str, tuple[str, str]]] = defaultdict(dict)

    def parquet(self, task: TaskRow, config: str, rows: Sequence[Values], *, with_images: bool = False, listed: bool = True) -> None:
        """``<config>/<split>-00000-of-00001.parquet`` (``data/`` for the only configuration)."""
        folder = "data" if config == "default" else config
        table = pa.Table.from_pylist(list(rows))
        if with_images:
            features = {"image": {"_type": "Image"}, "corpus-id": {"dtype": str(table.schema.field("corpus-id").type), "_type": "Value"}}
            table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
        file = self.root / task.repo / folder / f"{task.split}-00000-of-00001.parquet"
        file.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, file)
        if listed:
            self._configs[task.repo][config] = (task.split, f"{folder}/{task.split}-*")

    def jsonl(self, task: TaskRow, rows: Sequence[Values], *, listed: bool) -> None:
        """``<split>.jsonl``, or a file that the README names."""
        name = f"{task.repo.split('/')[1].lower()}.jsonl" if listed else f"{task.split}.jsonl"
        file = self.root / task.repo / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        if listed:
            self._configs[task.repo][task.configs[0]] = (task.split, name)

    def json(self, task: TaskRow, config: str, rows: Sequence[Values]) -> None:
        """``json/<config>.json``, one list."""
        file = self.root / task.repo / "json" / f"{config}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(list(rows), ensure_ascii=False, indent=1), encoding="utf-8")
        self._configs[task.repo][config] = (task.split, f"json/{config}.json")

    def write_readmes(self) -> None:
        """The READMEs, once all tables are there."""
        for repo, configs in self._configs.items():
            lines = ["---", "configs:"]
            for config, (split, path) in configs.items():
                lines += [f"- config_name: {config}", "  data_files:", f"  - split: {split}", f"    path: {path}"]
            (self.root / repo / "README.md").write_text("\n".join([*lines, "---", ""]), encoding="utf-8")


class Maker:
    """Makes the files of one task.

    Args:
        repositories: Where its tables are written.
        task: The task.
        num_rows: Rows.
    """

    def __init__(self, repositories: Repositories, task: TaskRow, num_rows: int) -> None:
        self.repositories, self.task, self.num_rows = repositories, task, num_rows
        self.draw = media.Draw(task.name)

    def folder(self, *, videos: bool = False) -> Path:
        """Where its media lie: the first place that is looked at, or the last, which is that of whole videos."""
        return self.repositories.root / self.task.media[-1 if videos else 0]

    def image_to_text(self) -> None:
        """Drawings and their names, flags and capitals, drawings and captions."""
        rows: list[Values] = []
        flags, things = self.draw.countries(self.num_rows + _NUM_CANDIDATES), self.draw.concepts(self.num_rows + _NUM_CANDIDATES)
        for number in range(self.num_rows):
            path = f"{self.task.name}/{self.task.split}_{number:04d}.jpg"
            if self.task.parser == "image_qa":
                picture, texts = media.flag(flags[number]), [country.capital for country in flags]
                words = ("<|image_1|>\nAnswer the question about this picture: ", "Which city is the capital of this country?")
            else:
                picture = media.drawing(things[number])
                texts = [concept.name for concept in things]
                words = ("<|image_1|>\nSay what this picture shows.", "")
                if self.task.parser == "image_i2t":
                    texts, words = [f"A drawing of one {name}." for name in texts], ("<|image_1|> Find a caption of this picture.", "")
            media.save_picture(self.folder() / path, picture)
            rows.append({"qry_inst": words[0], "qry_text": words[1], "qry_img_path": path, "tgt_text": _right_first(texts, number)})
        self.repositories.parquet(self.task, self.task.configs[0], rows)

    def text_to_image(self) -> None:
        """Names and drawings."""
        things = self.draw.concepts(self.num_rows + _NUM_CANDIDATES)
        rows: list[Values] = []
        for number in range(self.num_rows):
            offered = _right_first(things, number)
            captions = [
                f"Picture {place} of story {number}: {concept.name}" if self.task.name in CAPTIONED else "" for place, concept in enumerate(offered)
            ]
            paths = [self._drawing(concept) for concept in offered]
            row = {"qry_inst": "Find a picture of this:", "qry_text": things[number].name, "tgt_inst": "<|image_1|> Represent this picture."}
            rows.append({**row, "tgt_text": captions, "tgt_img_path": paths})
        self.repositories.parquet(self.task, self.task.configs[0], rows)

    def image_to_image(self) -> None:
        """Drawings of the same thing in two styles, and rows of things with the thing that is named."""
        things = self.draw.concepts(self.num_rows + _NUM_CANDIDATES)
        is_grounding, is_matching = self.task.subgroup == "IMG_GRD", self.task.name == "RefCOCO-Matching"
        rows: list[Values] = []
        for number in range(self.num_rows):
            path = f"{self.task.name}/query_{number:04d}.jpg"
            offered = _right_first(things, number)
            picture = media.scene(offered[:2]) if is_grounding else media.drawing(things[number], "twemoji")
            media.save_picture(self.folder() / path, picture)
            text = f"the {things[number].name}" if is_grounding else "in another style"
            captions = [f'"the {concept.name}"' if is_matching else concept.name if self.task.name == "OVEN" else "" for concept in offered]
            row = {"qry_inst": "<|image_1|> Find what is asked for:", "qry_text": text, "qry_img_path": path}
            target: Values = {
                "tgt_inst": "<|image_1|> Represent this picture.",
                "tgt_text": captions,
                "tgt_img_path": [self._drawing(each) for each in offered],
            }
            rows.append({**row, **target})
        self.repositories.parquet(self.task, self.task.configs[0], rows)

    def something(self) -> None:
        """Things that move: in which direction?"""
        rows: list[Values] = []
        for number, concept in enumerate(self.draw.concepts(self.num_rows)):
            direction = media.DIRECTIONS[number % 4]
            media.save_frames(self.folder() / str(70000 + number), self.draw.moving(concept, direction))
            texts = [f"Moving something {each}" for each in media.DIRECTIONS]
            rows.append({"video_id": 70000 + number, "pos_text": f"Moving something {direction}", "neg_text": texts})
        self.repositories.jsonl(self.task, rows, listed=True)

    def video_class(self) -> None:
        """Clips with a label written on them."""
        rows: list[Values] = []
        labels = self.draw.choice(label_list(self.task.labels), self.num_rows)
        for number, concept in enumerate(self.draw.concepts(self.num_rows)):
            label = labels[number % len(labels)]
            media.save_frames(self.folder() / f"{label}_{number:03d}", media.written(label, concept))
            rows.append({"video_id": f"{label}_{number:03d}", "pos_text": label})
        self.repositories.jsonl(self.task, rows, listed=self.task.name != "Breakfast")

    def video_retrieval(self) -> None:
        """Captions of things that move; VATEX as whole videos, the others as frames."""
        rows: list[Values] = []
        for number, concept in enumerate(self.draw.concepts(self.num_rows)):
            direction, key = media.DIRECTIONS[number % 4], f"video{7000 + number}"
            frames, caption = self.draw.moving(concept, direction), f"The {concept.name} moves {direction}."
            if self.task.parser == "vatex":
                media.save_video(self.folder(videos=True) / f"{key}.mp4", frames)
            else:
                media.save_frames(self.folder() / key, frames)
            several = [caption, f"Something moves {direction}."]
            kinds: dict[str, Values] = {
                "msrvtt": {"video_id": key, "video": f"{key}.mp4", "caption": caption},
                "msvd": {"video_id": key, "video": f"{key}.avi", "caption": several},
                "didemo": {"video": f"videos/{key}.mp4", "caption": caption},
                "youcook2": {"id": key, "video_path": f"val/{key}.mp4", "sentence": caption},
                "vatex": {"videoID": key, "enCap": several},
            }
            rows.append(kinds[self.task.parser])
        if self.task.parser == "youcook2":
            self.repositories.parquet(self.task, "default", rows)
        else:
            self.repositories.jsonl(self.task, rows, listed=self.task.name != "MSVD")

    def moments(self) -> None:
        """Three things one after another: when is the one named?"""
        rows: list[Values] = []
        for number in range(self.num_rows):
            things, name = self.draw.concepts(_CLIPS + 1), f"clip_{number:03d}"
            folder = self.folder() / name
            media.save_frames(folder / "query", media.one_after_another([things[1], things[0], things[2]]))
            media.save_frames(folder / "positive", media.still(things[0]))
            for place, concept in enumerate(things[1:]):
                media.save_frames(folder / f"negative_{place}", media.still(concept))
            rows.append({"query": f"The {things[0].name} is seen.", "video_path": f"videos/{name}.mp4"})
        self.repositories.jsonl(self.task, rows, listed=True)

    def moment_seeker(self) -> None:
        """Clips of a thing, by its name alone, with its drawing, or with a clip; every second row has two right ones."""
        rows: list[Values] = []
        for number in range(self.num_rows):
            things = self.draw.concepts(_CLIPS)
            paths = [f"videos/film_{number}/{place}.00_{place + 1}.00.mp4" for place in range(_CLIPS + 1)]
            for path, concept in zip(paths, [things[0], *things], strict=True):
                media.save_frames(self.folder() / "video_frames" / path.removesuffix(".mp4").replace("/", "_"), media.still(concept))
            beside = ("", f"still_{number}.jpg", f"films/{number}.mp4")[number % 3]
            if beside.endswith(".jpg"):
                media.save_picture(self.folder() / f"query_{beside}", media.drawing(things[0]))
            elif beside:
                media.save_frames(self.folder() / "video_frames" / f"films_{number}", media.still(things[0]))
            first = 2 - number % 2
            rows.append(
                {
                    "query": f"The {things[0].name} is seen.",
                    "positive_frames": [{"output_path": path} for path in paths[2 - first : 2]],
                    "negative_frames": [{"output_path": path} for path in paths[2:]],
                    "input_frames": beside,
                }
            )
        self.repositories.jsonl(self.task, rows, listed=True)

    def questions(self) -> None:
        """Where does it move?"""
        rows: list[Values] = []
        for number, concept in enumerate(self.draw.concepts(self.num_rows)):
            direction, key = media.DIRECTIONS[number % 4], f"{4000000 + number}"
            prefix = "v_" if self.task.parser == "activitynetqa" else ""
            media.save_frames(self.folder() / f"{prefix}{key}", self.draw.moving(concept, direction))
            rows.append(self._question(key, concept, direction, number))
        self._save_questions(rows)

    def _question(self, key: str, concept: Concept, direction: str, number: int) -> Values:
        question, index = f"Where does the {concept.name} move?", media.DIRECTIONS.index(direction)
        options = [*media.DIRECTIONS, "nowhere"]
        if self.task.parser == "videomme":
            lettered = [f"{'ABCD'[place]}. It moves {option}." for place, option in enumerate(media.DIRECTIONS)]
            return {
                **{"question": question, "videoID": key, "options": lettered, "answer": "ABCD"[index]},
                **{"question_id": f"{number:03d}-1", "domain": "Motion", "sub_category": "Direction"},
            }
        if self.task.parser == "nextqa":
            texts = {f"a{place}": option for place, option in enumerate(options)}
            return {"video": int(key), "question": question, "answer": index, "qid": number, "type": "CH", **texts}
        if self.task.parser == "egoschema":
            lettered = [f"{'ABCDE'[place]}. It moves {option}." for place, option in enumerate(options)]
            return {"video_idx": key, "question": question, "answer": str(index), "question_idx": str(number), "option": lettered}
        answer = "yes" if number % 2 == 0 else "no"
        asked = direction if answer == "yes" else media.DIRECTIONS[(index + 1) % 4]
        return {"video_name": key, "question": f"does the {concept.name} move {asked}", "answer": answer, "question_id": f"{key}_0"}

    def _save_questions(self, rows: Sequence[Values]) -> None:
        if self.task.parser in ("nextqa", "egoschema"):
            self.repositories.parquet(self.task, self.task.configs[0], rows)
        else:
            self.repositories.jsonl(self.task, rows, listed=True)

    def mvbench(self) -> None:
        """Where does it move? In each of the configurations; in one as whole videos."""
        for config, videos in mvbench_folders().items():
            rows: list[Values] = []
            for number, concept in enumerate(self.draw.concepts(max(1, round(self.num_rows / len(self.task.configs))))):
                direction, name = media.DIRECTIONS[number % 4], f"{config}_{number}.mp4"
                frames = self.draw.moving(concept, direction)
                if config == "action_count":
                    media.save_video(self.folder(videos=True) / videos / name, frames)
                else:
                    media.save_frames(self.folder() / config / name, frames)
                row: Values = {
                    "video": name,
                    "question": f"Where does the {concept.name} move?",
                    "candidates": list(media.DIRECTIONS),
                    "answer": direction,
                }
                rows.append(row)
            self.repositories.json(self.task, config, rows)

    def pages(self) -> None:
        """Pages about countries, in two layouts; where labels have grades, the other layout is worth half."""
        is_visrag, shown = self.task.parser == "visrag", self.draw.countries(self.num_rows + 3)
        has_numbers = self.task.subgroup in ("ViDoRe_v1", "ViDoRe_v2")
        pages = [(country, layout) for country in shown for layout in LAYOUTS]
        ids: list[object] = [number if has_numbers else f"{country.name}-{layout}.png" for number, (country, layout) in enumerate(pages)]
        queries: list[Values] = []
        qrels: list[Values] = []
        for number, country in enumerate(shown[: self.num_rows]):
            layout, key = LAYOUTS[number % 2], number if has_numbers else f"query-{number}"
            kind = {"sheet": "fact sheet", "profile": "profile"}[layout]
            queries.append({"query-id": key, "query": f"Find the {kind} of {country.name}.", **({"language": "english"} if has_numbers else {})})
            place = pages.index((country, layout))
            qrels.append({"query-id": key, "corpus-id": ids[place], "score": 2 if self.task.name in GRADED else 1})
            if self.task.name in GRADED:
                qrels.append({"query-id": key, "corpus-id": ids[place ^ 1], "score": 1})
            qrels.append({"query-id": key, "corpus-id": ids[-1], "score": 0})
        corpus: list[Values] = [
            {"corpus-id": key, "image": {"bytes": media.encoded(media.page(country, layout)), "path": f"{key}.png"}}
            for key, (country, layout) in zip(ids, pages, strict=True)
        ]
        self.repositories.parquet(self.task, "queries", queries, listed=not is_visrag)
        self.repositories.parquet(self.task, "qrels", qrels, listed=not is_visrag)
        self.repositories.parquet(self.task, "corpus", corpus, with_images=True, listed=not is_visrag)

    def _drawing(self, concept: Concept) -> str:
        path = f"{self.task.name}/{concept.name}.jpg"
        if not (self.folder() / path).exists():
            media.save_picture(self.folder() / path, media.drawing(concept))
        return path


MAKERS: Mapping[str, Callable[[Maker], None]] = {
    **dict.fromkeys(("image_cls", "image_qa", "image_i2t"), Maker.image_to_text),
    "image_t2i": Maker.text_to_image,
    "image_i2i_vg": Maker.image_to_image,
    "ssv2": Maker.something,
    "video_classification": Maker.video_class,
    **dict.fromkeys(("msrvtt", "msvd", "didemo", "youcook2", "vatex"), Maker.video_retrieval),
    "moment_retrieval": Maker.moments,
    "momentseeker": Maker.moment_seeker,
    **dict.fromkeys(("videomme", "nextqa", "egoschema", "activitynetqa"), Maker.questions),
    "mvbench": Maker.mvbench,
    **dict.fromkeys(("vidore", "visrag"), Maker.pages),
}
"""Parser of the task → what makes its files."""


def make_tree(root: Path, *, num_rows: int = 4, tasks: Sequence[str] = ()) -> None:
    """Writes the files of the tasks.

    Args:
        root: Folder; made if it is not there.
        num_rows: Rows of each task (of MVBench at least one of each of its 20 configurations).
        tasks: Which tasks; none named: all 78.
    """
    repositories = Repositories(root)
    for name in tasks or TABLE:
        MAKERS[TABLE[name].parser](Maker(repositories, TABLE[name], num_rows))
    repositories.write_readmes()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=4, help="rows of each task")
    arguments = parser.parse_args()
    make_tree(arguments.folder, num_rows=arguments.rows)


if __name__ == "__main__":
    main()
