"""Bundles for people without this package: folders that transformers alone turns into the same vectors.

With the interface "kv" the reasoning adapter reads the prompt and the embedding adapter runs the queries over what it left. Merged, these are two
language models: a whole one that reads and writes, and the bare layers of another, without vision tower and token table, that turn its cache into
vectors. With "reencode" both are whole.
"""

from __future__ import annotations

import dataclasses
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from string import Template

import torch

import twn_lightning.models  # noqa: F401  (first: it prepares the import of torchvision, on which transformers depends)

# isort: split
import transformers  # noqa: TID251 - what is written is for it
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from twn_lightning.batches import Item
from twn_lightning.checkpoints import BundleDefaults
from twn_lightning.encoder import Encoder
from twn_lightning.errors import CheckpointError, ConfigError
from twn_lightning.evaluation.store_digests import folder_digest
from twn_lightning.models.backbones.qwen_vl_processor import IMAGE, VISION_END, VISION_START
from twn_lightning.models.dual_lora import DualLoRAModel
from twn_lightning.models.outputs import Decoding

TEMPLATE = Path(__file__).with_name("transformers_readme.md")
README, QUERIES, GATE = "README.md", "queries.safetensors", "gate.safetensors"


def export_transformers(
    bundle: str | Path, folder: str | Path, *, dtype: str | None = None, decoding: Decoding | None = None, fallback: BundleDefaults | None = None
) -> Path:
    """Writes a folder whose README.md shows how plain transformers makes the bundle's vectors.

    Args:
        bundle: Folder that a stage wrote.
        folder: To write; it must not be there, or be empty.
        dtype: Of the merged weights: float32, bfloat16 or float16; None for the bundle's, whose rounding the merged weights then share.
        decoding: How many tokens a thought has at most; thoughts are greedy.
        fallback: For a bundle without twn_config.json.

    Returns:
        The folder.

    Raises:
        CheckpointError: The bundle cannot be loaded, or the folder not be written.
        ConfigError: The folder is in use, or the dtype or the prompt's layout cannot be expressed.
    """
    check_free(Path(folder))
    decoding = decoding or Decoding()
    if decoding.temperature:
        raise ConfigError(f"decoding.temperature is {decoding.temperature:g}, but exported thoughts are greedy: choose 0.")

    def load() -> DualLoRAModel:
        return Encoder.from_pretrained(bundle, device="cpu", dtype=dtype, fallback=fallback, merge=False).model

    with new_folder(Path(folder)) as writing:
        readme = _write_reasoning(load(), writing, digest=folder_digest(Path(bundle)), decoding=decoding)
        if not readme.is_shared:
            _write_embedding(load(), writing)
        (writing / README).write_text(readme.text(writing), encoding="utf-8")
    return Path(folder)


def check_free(folder: Path) -> None:
    """Whether a folder can be written without losing anything.

    Raises:
        ConfigError: There is something.
    """
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise ConfigError(f"{folder} is there already: choose another folder, or remove it first.")


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Gives a folder to fill, which gets its name when the body ends well and is removed when it does not.

    Args:
        folder: That `check_free` allows.

    Raises:
        CheckpointError: It cannot be written.
    """
    folder = folder.absolute()
    writing = folder.with_name(f".{folder.name}.writing")
    shutil.rmtree(writing, ignore_errors=True)
    try:
        writing.mkdir(parents=True)
        yield writing
        if folder.is_dir():
            folder.rmdir()
        writing.rename(folder)
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be written: {error}. Choose a folder you may write to, with space left.") from error
    finally:
        shutil.rmtree(writing, ignore_errors=True)


def _write_reasoning(model: DualLoRAModel, folder: Path, *, digest: str, decoding: Decoding) -> _Readme:
    """The model that writes thoughts, what it needs, queries and gate; uses the model up."""
    readme = _Readme(model, digest=digest, decoding=decoding)
    if model.num_queries:
        save_file({"queries": model.queries.detach().contiguous()}, folder / QUERIES)
    save_file({key: tensor.contiguous() for key, tensor in model.gate.mlp.state_dict().items()}, folder / GATE)
    whole: transformers.PreTrainedModel = model.peft.merge_and_unload(adapter_names=["reasoning"])
    whole.generation_config = _generation_config(model, decoding)
    whole.save_pretrained(folder / "reasoning")
    _processor(model).save_pretrained(folder / "reasoning")
    return readme


def _write_embedding(model: DualLoRAModel, folder: Path) -> None:
    """The model that makes vectors; uses the model up."""
    whole: transformers.PreTrainedModel = model.peft.merge_and_unload(adapter_names=["embedding"])
    part = _bare_layers(whole, model.queries) if model.interface == "kv" else whole
    part.save_pretrained(folder / "embedding")


def _bare_layers(whole: transformers.PreTrainedModel, queries: torch.Tensor) -> transformers.PreTrainedModel:
    """The decoder, which is only ever given vectors: the queries stand in for its table of tokens, which it cannot be saved without."""
    layers: transformers.PreTrainedModel = whole.model.language_model
    table = queries.detach().to(layers.dtype)
    layers.embed_tokens = nn.Embedding(table.shape[0], table.shape[1], _weight=table)
    layers.config.vocab_size, layers.config.pad_token_id = len(queries), None
    return layers


def _generation_config(model: DualLoRAModel, decoding: Decoding) -> transformers.GenerationConfig:
    processor = model.processor
    return transformers.GenerationConfig(  # type: ignore[no-untyped-call]
        do_sample=False,
        max_new_tokens=decoding.max_new_tokens,
        eos_token_id=processor.think_close_id,
        pad_token_id=processor.pad_id,
        suppress_tokens=model.banned.nonzero().flatten().tolist(),
    )


def _processor(model: DualLoRAModel) -> transformers.ProcessorMixin:
    """The backbone's own, with the bundle's limits of pictures."""
    options = model.processor.options
    processor: transformers.ProcessorMixin = transformers.AutoProcessor.from_pretrained(model.backbone.path)  # type: ignore[no-untyped-call]
    limits = {"shortest_edge": options.min_pixels, "longest_edge": options.max_pixels}
    given = {edge: limit for edge, limit in limits.items() if limit is not None}
    processor.image_processor.size = dataclasses.replace(processor.image_processor.size, **given)
    return processor


class _Readme:
    """The code that reads the folder, for the settings of a model; made before the model is used up.

    Args:
        model: That is written.
        digest: Of the bundle.
        decoding: Of its thoughts.

    Attributes:
        is_shared: Whether one adapter does everything, so that there is one model.

    Raises:
        ConfigError: The model's prompts cannot be put together from their parts.
    """

    def __init__(self, model: DualLoRAModel, *, digest: str, decoding: Decoding) -> None:
        tokenizer, dtype = _processor(model).tokenizer, str(model.backbone.model.dtype).removeprefix("torch.")
        opening, closing = tokenizer.convert_ids_to_tokens([model.processor.think_open_id, model.processor.think_close_id])
        self._values = {
            "digest": digest,
            "version": transformers.__version__,
            "models": _models_code(model),
            "prompt": _prompt_code(model, tokenizer),
            "opening": repr(opening),
            "answers": _ANSWERS if model.num_queries else _LAST,
            "threshold": f"{model.gate.threshold:.6g}",
            "seen": {"embedding": "(answer,)", "prompt": "(words,)", "both": "(answer, words)"}[model.gate.reads],
            "dtype": dtype,
            "rounding": "" if dtype == "float32" else f" {_ROUNDED}",
            "closing": closing,
            "both": _ONE if model.is_shared else _TWO if model.interface == "kv" else _TWICE,
            "max_new_tokens": str(decoding.max_new_tokens),
        }
        self.is_shared = model.is_shared
        self._has_layers = model.interface == "kv"

    def text(self, folder: Path) -> str:
        """The words.

        Args:
            folder: Written, but for them; its sizes are told.
        """
        described = {**_CONTENTS, "embedding": _LAYERS if self._has_layers else _WHOLE}
        rows = [f"| `{name}` | {what} | {_num_bytes(folder / name) / 1e6:,.1f} MB |" for name, what in described.items() if (folder / name).exists()]
        files = "\n".join(["| what | | size |", "|---|---|---|", *rows])
        return Template(TEMPLATE.read_text(encoding="utf-8")).substitute(self._values, files=files)


_CONTENTS = {
    "reasoning": "A whole model with the reasoning adapter merged in: it reads and writes, and serves wherever such a model does",
    "embedding": "",
    QUERIES: "The vectors whose answers are the embedding",
    GATE: "Decides whether an input is worth a thought",
}
_LAYERS = "The language model's layers with the embedding adapter merged in; no vision tower, and no table of tokens, which nothing looks up"
_WHOLE = "A whole model with the embedding adapter merged in: it reads prompts and thoughts anew"
_TWO = "Two adapters change nearly every matrix of the language model, so that it is kept twice; the vision tower and the table of tokens are not."
_TWICE = "Two adapters change nearly every matrix, and each of them reads prompts: there are two whole models."
_ONE = "One adapter reads, thinks and embeds: there is one model."
_ROUNDED = (
    "Rounding moves the numbers of a vector by some thousandths, as running in that precision does; `--dtype float32` does not, at twice the size."
)

_ANSWERS = """\
    start = output.last_hidden_state.shape[1] + (int(reader.model.rope_deltas) if images else 0)
    places = torch.arange(start, start + len(queries), device=device).expand(3, 1, -1)
    answers = embedding(inputs_embeds=queries[None], position_ids=places, past_key_values=output.past_key_values).last_hidden_state[0]"""
_LAST = "    answers = output.last_hidden_state[0, -1:]"


def _models_code(model: DualLoRAModel) -> str:
    whole, layers = "AutoModelForImageTextToText", "AutoModel"
    load = '{}.from_pretrained(f"{{folder}}/embedding", dtype="auto").to(device).eval()'
    has_two, reads_cache = not model.is_shared, model.interface == "kv"
    lines = [f"reader = {load.format(whole)}" if has_two and not reads_cache else "reader = reasoning"]
    if model.num_queries:
        lines.append(f"embedding = {load.format(layers)}" if has_two and reads_cache else "embedding = reader.model.language_model")
        lines.append(f'queries = load_file(f"{{folder}}/{QUERIES}")["queries"].to(device, embedding.dtype)')
    return "\n".join(lines)


def _prompt_code(model: DualLoRAModel, tokenizer: transformers.PreTrainedTokenizerBase) -> str:
    """Lines that put `prompt` together from `text`, `images` and `instruction`."""
    options, span, mark = model.processor.options, VISION_START + IMAGE + VISION_END, "\ue000"
    picture = Image.new("RGB", (64, 64))

    def rendered(item: Item) -> str:
        words = tokenizer.decode(model.processor.inputs([item]).input_ids[0], skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return re.sub(f"(?:{re.escape(IMAGE)})+", IMAGE, str(words))

    def parts(instruction: str) -> tuple[str, str, str]:
        """Before the pictures, between them and the words, and after the words."""
        before, _, rest = rendered(Item(text=mark, images=(picture,), instruction=instruction)).partition(span)
        between, _, after = rest.partition(mark)
        return before, between, after

    lines = [f"instruction, text = instruction.strip(){f' or {options.default_instruction!r}' * bool(options.default_instruction)}, text.strip()"]
    if options.layout == "bare":
        lines.append(f'prompt = "\\n".join(part for part in ({span!r} * len(images), instruction, text) if part)')
    elif options.layout == "system":
        (told, between, after), untold = parts("\ue001"), parts("")[0]
        opening, _, closing = told.partition("\ue001")
        lines.append(f"before = {opening!r} + instruction + {closing!r} if instruction else {untold!r}")
        lines.append(f"prompt = before + {span!r} * len(images) + {between!r} + text + {after!r}")
    else:
        before, between, after = parts("\ue001")
        between = between.removesuffix("\ue001\n")
        lines.append('words = "\\n".join(part for part in (instruction, text) if part)')
        lines.append(f"prompt = {before!r} + {span!r} * len(images) + {between!r} + words + {after!r}")
    for text, num_images, instruction in (("a b", 0, ""), ("a b", 2, "c d"), ("", 1, ""), (" e", 1, "f\n")):
        names = {"text": text, "images": [picture] * num_images, "instruction": instruction}
        exec("\n".join(lines), names)  # what a reader of the folder will run, on the way to the very same words
        if names["prompt"] != rendered(Item(text=text, images=(picture,) * num_images, instruction=instruction)):
            raise ConfigError(
                f"The chat template of {model.backbone.path} does not put instruction, pictures and text one after the other, so that no short code "
                "makes its prompts: use backbone.layout=bare, or the sentence-transformers export."
            )
    return "\n".join(f"    {line}" for line in lines)


def _num_bytes(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*")) if path.is_dir() else path.stat().st_size
