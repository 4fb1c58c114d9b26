"""Writes each training data set in its original's form, small, from real flags: for tests of the sources and of whole recipes."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import datasets
from PIL import Image, ImageDraw

from datamodules.mini.assets import Country, countries, flag
from datamodules.sources.mmeb_train import CONFIGS

SIDE = 48
NEGATIVES_IN = "CIRR"
"""The configuration of MMEB-train whose rows have hard negatives."""
MMEB_CONFIGS = ("ImageNet_1K", "MSCOCO_t2i", NEGATIVES_IN)
"""Those that are written."""
THINKING = (
    "<disc_emb>\nRepresent the above input text, images, videos, or any combination of the three as embeddings. First think, then sum up, "
    "and end with the <gen_emb> tag."
)


def make(folder: Path, *, rows: int) -> dict[str, Path]:
    """Writes all data sets below a folder, the same ones each time.

    Args:
        folder: Where to; made if it is not there.
        rows: Rows of each file; the ninth and every further eighth row of UME-R1 has left-over markers.

    Returns:
        The path of each: "mmeb_train", "colpali", "visrag" (folders of hub repositories), "llava_hound", "ume_r1", "ume_r1_rl", "twn", "twn_rl"
        (files), and "media" (the folder of pictures and of frames of the files).
    """
    folder.mkdir(parents=True, exist_ok=True)
    shown = [countries()[number % len(countries())] for number in range(rows)]
    media = folder / "media"
    _write_media(media, shown)
    return {
        "media": media,
        "mmeb_train": _mmeb_train(folder / "TIGER-Lab" / "MMEB-train", shown),
        "colpali": _pages(folder / "vidore" / "colpali_train_set", [_colpali_row(number, one) for number, one in enumerate(shown)]),
        "visrag": _pages(folder / "openbmb" / "VisRAG-Ret-Train-In-domain-data", [_visrag_row(number, one) for number, one in enumerate(shown)]),
        "llava_hound": _json_lines(folder / "video_instruction" / "video_caption_300k.jsonl", [_hound_row(*one) for one in enumerate(shown)]),
        "ume_r1": _json_list(folder / "UME-sft-train" / "UME-sft-train.json", [_ume_row(*one) for one in enumerate(shown)]),
        "ume_r1_rl": _json_list(folder / "UME-rl-train" / "UME-rl-train.json", [_ume_rl_row(*one) for one in enumerate(shown)]),
        "twn": _json_list(folder / "TWN-training-data" / "sft" / "MMEB_ImageNet_1K.json", [_twn_row(*one) for one in enumerate(shown)]),
        "twn_rl": _json_list(folder / "TWN-training-data" / "rl" / "rl.json", [_twn_rl_row(*one) for one in enumerate(shown)]),
    }


def sources(made: dict[str, Path]) -> dict[str, dict[str, Any]]:
    """Entries of ``data.sources`` for what `make` wrote, by a name of each; those of "ume_r1", "twn" have chains of thought."""
    media = str(made["media"])
    folders = {"mmeb_train": media, "sharegpt_video": f"{media}/frames"}
    return {
        **{
            config: {"kind": "mmeb_train", "options": {"path": str(made["mmeb_train"]), "config": config, "media_root": media}}
            for config in MMEB_CONFIGS
        },
        "colpali": {"kind": "colpali", "options": {"path": str(made["colpali"])}},
        "visrag": {"kind": "visrag", "options": {"path": str(made["visrag"])}},
        "llava_hound": {"kind": "llava_hound", "options": {"path": str(made["llava_hound"]), "media_root": f"{media}/frames", "task": "video"}},
        "ume_r1": {"kind": "ume_r1", "options": {"path": str(made["ume_r1"]), "media_root": media}},
        "ume_r1_rl": {"kind": "ume_r1", "options": {"path": str(made["ume_r1_rl"]), "media_root": media}},
        "twn": {"kind": "twn", "options": {"path": str(made["twn"]), "media": folders}},
        "twn_rl": {"kind": "twn", "options": {"path": str(made["twn_rl"]), "media": folders, "name": "twn_rl"}},
    }


def picture_name(number: int) -> str:
    """Path of a row's picture below the folder of media."""
    return f"images/flags/{number}.jpg"


def _write_media(media: Path, shown: list[Country]) -> None:
    (media / "images" / "flags").mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (SIDE, SIDE), "white").save(media / "images" / "blank.jpg")
    for number, country in enumerate(shown):
        picture = _flag(country)
        picture.save(media / picture_name(number))
        frames = media / "frames" / f"v_{number}"
        frames.mkdir(parents=True, exist_ok=True)
        for frame in range(4):
            paper = Image.new("RGB", (SIDE, SIDE), "white")
            paper.paste(picture, (frame * 4, 0))
            paper.save(frames / f"c01_{frame + 1:04d}.jpeg")


def _flag(country: Country) -> Image.Image:
    paper = Image.new("RGB", (SIDE, SIDE), "white")
    drawn = flag(country.code, "twemoji")
    drawn.thumbnail((SIDE, SIDE))
    paper.paste(drawn, (0, 0), drawn)
    return paper


def _page(country: Country) -> bytes:
    page = Image.new("RGB", (96, 64), "white")
    ImageDraw.Draw(page).text((2, 2), f"{country.name}\ncapital: {country.capital}", fill="black")
    page.paste(_flag(country), (40, 26))
    content = io.BytesIO()
    page.save(content, format="PNG")
    return content.getvalue()


def _mmeb_train(folder: Path, shown: list[Country]) -> Path:
    """The repository: a README that names the configurations, and a parquet file of each split."""
    assert set(MMEB_CONFIGS) <= set(CONFIGS)
    lines = ["---", "configs:"]
    for config in MMEB_CONFIGS:
        (folder / config).mkdir(parents=True, exist_ok=True)
        lines += [f"- config_name: {config}", "  data_files:"]
        for split in ("original", "diverse_instruction"):
            lines += [f"  - split: {split}", f"    path: {config}/{split}-*"]
            table = datasets.Dataset.from_list([_mmeb_row(config, split, number, country) for number, country in enumerate(shown)])
            _parquet(table, folder / config / f"{split}-00000-of-00001.parquet")
    (folder / "README.md").write_text("\n".join([*lines, "---", ""]), encoding="utf-8")
    return folder


def _mmeb_row(config: str, split: str, number: int, country: Country) -> dict[str, str]:
    image = picture_name(number)
    ask = "Represent the given image for classification" if split == "original" else "Encode this picture to name what it shows"
    if config == "MSCOCO_t2i":
        row = {"qry": f"Find me a picture of: the flag of {country.name}\n", "pos_text": "<|image_1|>\nRepresent the given image.\n"}
        return {**row, "qry_image_path": "", "pos_image_path": image, "neg_text": "", "neg_image_path": ""}
    row = {"qry": f"<|image_1|>\n{ask}\n", "qry_image_path": image, "pos_text": f"flag of {country.name}\n", "pos_image_path": ""}
    if config == NEGATIVES_IN:
        return {**row, "neg_text": "<|image_1|>\nRepresent the given image.\n", "neg_image_path": "images/blank.jpg"}
    return {**row, "neg_text": "", "neg_image_path": ""}


def _pages(folder: Path, listed: list[dict[str, Any]]) -> Path:
    (folder / "data").mkdir(parents=True, exist_ok=True)
    table = datasets.Dataset.from_list(listed).cast_column("image", datasets.Image(decode=False))
    _parquet(table, folder / "data" / "train-00000-of-00001.parquet")
    return folder


def _colpali_row(number: int, country: Country) -> dict[str, Any]:
    return {
        "image": {"bytes": _page(country), "path": f"{number}.png"},
        "image_filename": f"pages/{number}.png",
        "query": f"What is the capital of {country.name}?",
        "answer": country.capital,
        "source": "pdf",
        "options": None,
        "page": str(number),
        "model": "none",
        "prompt": "",
        "answer_type": "short",
    }


def _visrag_row(number: int, country: Country) -> dict[str, Any]:
    return {"query": f"capital of {country.name}", "image": {"bytes": _page(country), "path": f"{number}.png"}, "source": "ChartQA"}


def _hound_row(number: int, country: Country) -> dict[str, Any]:
    turns = [{"from": "human", "value": "<video>\nDescribe the video."}, {"from": "gpt", "value": f"The flag of {country.name} moves to the right."}]
    return {"id": f"v_{number}", "conversations": turns, "video": f"v_{number}"}


def _reply(country: Country, answer: str, *, with_debris: bool) -> str:
    shown = f"<|begin_of_box|>{answer}<|end_of_box|>" if with_debris else answer
    return f"<think>The picture shows the flag of {country.name}.</think><answer>{shown}\n<gen_emb>"


def _ume_row(number: int, country: Country) -> dict[str, Any]:
    asked = [
        {"from": "human", "value": f"<image>\nRepresent the given image with the following question: Which country is it?\n{THINKING}"},
        {"from": "gpt", "value": _reply(country, country.name, with_debris=number % 8 == 0 and number > 0)},
    ]
    told = [{"from": "human", "value": f"{country.name}\n{THINKING}"}, {"from": "gpt", "value": _reply(country, country.name, with_debris=False)}]
    query = {"conversations": asked, "image": picture_name(number)}
    if number % 4 == 3:
        query = {"conversations": [{**asked[0], "value": asked[0]["value"].replace("<image>", "<video>")}, asked[1]], "video": f"frames/v_{number}"}
    return {"dataset_name": "video" if number % 4 == 3 else "image", "qry": query, "pos": {"conversations": told, "image": "images/blank.jpg"}}


def _ume_rl_row(number: int, country: Country) -> dict[str, Any]:
    return {
        "qry_text": f"<image>\nRepresent the given image for classification\n{THINKING}",
        "qry_image": picture_name(number),
        "pos_text": f"{country.name}\n{THINKING}",
        "pos_image": "",
        "solution": country.name,
    }


def _twn_row(number: int, country: Country) -> dict[str, Any]:
    return {
        "data_info": {"data_type": "image_classification", "dataset_name": "MMEB_ImageNet_1K", "data_id": number},
        "query": {
            "text": "Represent the given image for classification",
            "image": f"mmeb_train://{picture_name(number)}",
            "cot": f"<think>The picture shows the flag of {country.name}.</think><answer>{country.name}</answer>",
        },
        "pos": {"text": country.name, "image": None, "cot": f"<think>A country named {country.name}.</think><answer>{country.name}</answer>"},
        "neg": [{"text": country.capital, "image": None}],
    }


def _twn_rl_row(number: int, country: Country) -> dict[str, Any]:
    return {
        **{name: value for name, value in _twn_row(number, country).items() if name != "neg"},
        "query": {"text": f"the flag of {country.name} moves"},
        "pos": {"video": f"sharegpt_video://v_{number}"},
        "data_index": number,
        "modality": "video",
        "source_dataset": "sharegpt_video",
        "target_hash": f"{number // 2:x}",
    }


def _parquet(table: datasets.Dataset, path: Path) -> None:
    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    table.to_parquet(path)
    if shown:
        datasets.enable_progress_bars()


def _json_list(path: Path, listed: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(listed, indent=2, ensure_ascii=False), encoding="utf-8")
    return path


def _json_lines(path: Path, listed: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{json.dumps(row)}\n" for row in listed), encoding="utf-8")
    return path
