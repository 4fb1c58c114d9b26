"""Whom the benchmark measures: the trained bundle, and models with random adapters on the shipped backbone and on a larger random one."""

from __future__ import annotations

import functools
import random
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import torch

from experiments.bench.sizes import MEDIUM, Size
from experiments.build import build_decoding, build_tasks, processor_options
from experiments.runs import resolve_backbone
from experiments.shapes import make_backbone
from twn_lightning.batches import Item
from twn_lightning.checkpoints import load_bundle, save_bundle
from twn_lightning.configs.run import RunConfig
from twn_lightning.encoder import Encoder
from twn_lightning.evaluation.store_digests import item_digest
from twn_lightning.evaluation.task import RetrievalTask
from twn_lightning.models.adapters import PROJECTIONS, LoraSpec
from twn_lightning.models.backbones import load_backbone
from twn_lightning.models.backbones.base import Processor
from twn_lightning.models.backbones.shapes import save_random, true_config
from twn_lightning.models.dual_lora import DualLoRAModel
from twn_lightning.models.outputs import Decoding

NUM_QUERIES, NUM_QUERIES_OF_SHORT = 16, 4
"""K over long prompts, as of real models, and over the short ones of MMEB-mini, as of the trained bundle."""
THINK_RATE = 0.35
"""Of a model with random weights, whose gate knows nothing: its threshold is set so that this share of the inputs thinks, about
as many as of the trained bundle on MMEB-mini."""
_WORDS = ("Fact", "about", "Kenya", "owl", "train", "melon", "3", "and", "5", "What", "is", "right", "of", "the", "Nairobi", "clip")


@dataclass(frozen=True)
class Subject:
    """A bundle that is measured.

    Attributes:
        title: Backbone and weights, for people.
        bundle: Its folder.
        size: How much it is given.
        decoding: How its thoughts are written.
        device: Where it runs.
        dtype: Of its backbone's weights.
        is_trained: Whether its thoughts and its gate mean something.
    """

    title: str
    bundle: Path
    size: Size
    decoding: Decoding
    device: torch.device
    dtype: str
    is_trained: bool = False

    def encoder(self) -> Encoder:
        """A fresh one."""
        dtype = self.dtype if self.is_trained else None  # a bundle of random adapters says it itself
        return Encoder.from_pretrained(self.bundle, device=self.device, dtype=dtype, decoding=self.decoding)

    def model(self) -> DualLoRAModel:
        """A fresh one in evaluation mode, for passes that the encoder does not make."""
        model = load_bundle(self.bundle)
        if self.is_trained:
            model.backbone.model.to(getattr(torch, self.dtype))
        return model.to(self.device)

    def precision(self) -> AbstractContextManager[object]:
        """Passes of a model whose adapters are kept in more bits than its backbone."""
        return nullcontext() if self.autocast is None else torch.autocast(self.device.type, dtype=self.autocast)

    @property
    def autocast(self) -> torch.dtype | None:
        """Type of the arithmetic where it is not that of the adapters."""
        return None if self.dtype == "float32" else getattr(torch, self.dtype)


@dataclass
class World:
    """What all parts share; bundles and inputs are made when a part first asks for them.

    Attributes:
        config: Settings of the trained bundle's run.
        trained_bundle: Where it lies, or None where only the large backbone is measured.
        folder: For random backbones and their bundles.
        device: Where models run.
        dtype: Of the backbones' weights.
        shape: Architecture of the large backbone, `MEDIUM` or a name of `make_backbone`; empty for none.
        shrink: The same structure, tiny: to see that it runs.
        sizes: How much the trained and shipped backbone ("small") and the random one ("large") are given.
        seed: Of inputs and random weights.
    """

    config: RunConfig
    trained_bundle: Path | None
    folder: Path
    device: torch.device
    dtype: str
    shape: str
    shrink: bool
    sizes: dict[str, Size]
    seed: int = 0
    _made: dict[str, Subject] = field(default_factory=dict)
    titles: list[str] = field(default_factory=list)
    """Of the subjects so far."""

    @property
    def small(self) -> Size:
        """What the trained bundle is given."""
        return self.sizes["small"]

    def encoding_subjects(self) -> list[Subject]:
        """Whose thinking is measured: the trained bundle, and the large backbone."""
        large = [self._fresh("large", NUM_QUERIES_OF_SHORT)] if self.shape else []
        return [*self._trained(), *large]

    def fresh_subjects(self) -> list[Subject]:
        """Whose passes over long prompts are measured: random adapters on the shipped backbone, and on the large one."""
        small = [self._fresh("small", NUM_QUERIES)] if self.trained_bundle is not None else []
        large = [self._fresh("large", NUM_QUERIES)] if self.shape else []
        return [*small, *large]

    def clock(self) -> Callable[[], float]:
        """Seconds; on an accelerator it is waited for."""
        return functools.partial(_now, self.device)

    @functools.cached_property
    def tasks(self) -> list[RetrievalTask]:
        """The test tasks."""
        tasks = build_tasks(self.config, "test", max_queries=self.small.task_queries)
        return tasks[:: self.small.task_step]

    @functools.cached_property
    def items(self) -> list[Item]:
        """Queries and candidates of the tasks, each once, in an order drawn from the seed."""
        every = [item for task in self.tasks for item in (*task.query_items, *task.candidate_items)]
        distinct = list({item_digest(item, by_content=True): item for item in every}.values())
        random.Random(self.seed).shuffle(distinct)
        return distinct

    def _trained(self) -> list[Subject]:
        if self.trained_bundle is None:
            return []
        model = load_bundle(self.trained_bundle)
        title = f"{_millions(model)}, trained, K = {model.num_queries}"
        decoding = build_decoding(self.config.decoding)
        self._note(title)
        return [Subject(title, self.trained_bundle, self.small, decoding, self.device, self.dtype, is_trained=True)]

    def _fresh(self, name: str, num_queries: int) -> Subject:
        key = f"{name}-{num_queries}"
        if key not in self._made:
            self._made[key] = self._with_adapters(name, num_queries)
        return self._made[key]

    @functools.cached_property
    def _shipped(self) -> Path:
        return resolve_backbone(self.config.backbone.path)

    @functools.cached_property
    def _random(self) -> Path:
        folder = self.folder / "backbone"
        if self.shape == MEDIUM:
            return save_medium(folder, tokenizer_from=self._shipped, dtype=self.dtype, seed=self.seed)
        return make_backbone(folder, self.shape, shrink=self.shrink, dtype=self.dtype, seed=self.seed)

    def _with_adapters(self, name: str, num_queries: int) -> Subject:
        """A bundle of random adapters: ranks of the run's settings on the shipped backbone, 64 and 32 on a large one."""
        config, size, path = self.config.model, self.sizes[name], self._shipped if name == "small" else self._random
        ranks = (config.reasoning.rank, config.embedding.rank) if name == "small" else (64, 32)
        targets = PROJECTIONS[:4] if "a3b" in self.shape and name == "large" else PROJECTIONS
        reasoning, embedding = (LoraSpec(rank=rank, alpha=2 * rank, target_modules=targets) for rank in ranks)
        backbone = load_backbone(path, dtype=self.dtype, attn_implementation="sdpa", options=processor_options(self.config))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            model = DualLoRAModel(backbone, reasoning=reasoning, embedding=embedding, num_queries=num_queries)
            for parameter_name, parameter in model.named_parameters():
                if ".lora_B." in parameter_name:
                    torch.nn.init.normal_(parameter, std=0.01)
        bundle = save_bundle(model, self.folder / f"bundle-{name}-{num_queries}", provenance={"seed": self.seed}, backbone_path=path)
        weights = "random adapters" if name == "small" else "random weights"
        title = f"{_millions(model)}, {weights}, K = {num_queries}"
        self._note(title)
        return Subject(title, bundle, size, Decoding(max_new_tokens=size.thought_tokens), self.device, self.dtype)

    def _note(self, title: str) -> None:
        if title not in self.titles:
            self.titles.append(title)


def save_medium(folder: Path, *, tokenizer_from: Path, dtype: str, seed: int) -> Path:
    """A folder like a checkpoint of Qwen3-VL-2B at about 100 million parameters, vision tower included (see `MEDIUM`); arguments of `save_random`."""
    config = true_config("qwen3-vl-2b")
    settings = config.to_dict()
    text, vision = settings["text_config"], settings["vision_config"]
    text.update(hidden_size=768, intermediate_size=2304, num_hidden_layers=10, num_attention_heads=12, num_key_value_heads=6, head_dim=64)
    text["rope_parameters"]["mrope_section"] = [12, 10, 10]
    text.pop("layer_types", None)
    vision.update(hidden_size=384, intermediate_size=1536, out_hidden_size=768, depth=8, num_heads=6)
    vision.update(deepstack_visual_indexes=[1, 3, 5], num_position_embeddings=144)
    return save_random(folder, type(config).from_dict(settings), tokenizer_from=tokenizer_from, dtype=dtype, small=True, seed=seed)


def long_items(processor: Processor, *, tokens: int, rows: int) -> list[Item]:
    """Different texts whose prompts have at least so many tokens, and not many more.

    Args:
        processor: Makes prompts.
        tokens: Of the shortest prompt, at least.
        rows: How many texts.
    """

    def made(number: int) -> list[Item]:
        return [Item(text=" ".join(_WORDS[(row + place * (1 + row % 3)) % len(_WORDS)] for place in range(number))) for row in range(rows)]

    number = 1
    while True:
        shortest = int(processor.inputs(made(number)).attention_mask.sum(dim=1).min())
        if shortest >= tokens:
            return made(number)
        number += max(1, (tokens - shortest) // 4)


def _millions(model: DualLoRAModel) -> str:
    number = model.parameter_report()["backbone"] / 1e6
    return f"{number:,.{1 if number < 10 else 0}f} M parameters"


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
