# ruff: noqa: E402 - the environment and torchvision must be set up before these imports
"""What tests share: a tiny random Qwen3-VL made on the spot, a model on it, and items of every modality."""

from __future__ import annotations

import copy
import gc
import os
import signal
import subprocess
import sys
import tempfile

_tables = tempfile.TemporaryDirectory(prefix="datasets-cache-")  # tables are turned into Arrow files, which no test leaves behind
os.environ["HF_DATASETS_CACHE"] = _tables.name
os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: OpenMP's spinning threads collapse when anything else runs
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from twn_lightning.torchvision_compat import ensure_torchvision

ensure_torchvision()
torch.set_num_threads(1)
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell starts what runs in the background; the processes that tests stop would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)

import numpy as np
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen3VLConfig, Qwen3VLForConditionalGeneration, Qwen3VLProcessor, Qwen3VLVideoProcessor
from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor

from experiments.pipeline import run_pipeline
from experiments.runs import CONFIGS
from twn_lightning.batches import Item
from twn_lightning.checkpoints import save_bundle
from twn_lightning.configs.load import load_config
from twn_lightning.configs.run import RunConfig
from twn_lightning.models.adapters import LoraSpec
from twn_lightning.models.backbones import load_backbone
from twn_lightning.models.backbones.base import Backbone, ProcessorOptions
from twn_lightning.models.dual_lora import DualLoRAModel

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
    "<think>",
    "</think>",
)
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% for part in message.content %}"
    "{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part.type == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WORDS = ("Find the capital of this country.", "the flag shows a red dot on white, so it is Japan, and its capital is Tokyo", "3 + 4 = 7", "seconds")
HIDDEN_SIZE = 32
ALONE = "TESTS_RUN_ALONE"
"""In the environment of a process that runs one test."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A test on a finished run is slow: the first one of a process waits for the run."""
    for item in items:
        if "finished_run" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.slow)


@pytest.hookimpl(trylast=True)
def pytest_collection_finish() -> None:
    """The collector passes over what has been imported, half a million objects which no test frees, and looks at the tests' own more rarely."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """A test that is marked alone runs in a process of its own, and shows what that one printed if it fails."""
    if pyfuncitem.get_closest_marker("alone") is None or ALONE in os.environ:
        return None
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", pyfuncitem.nodeid]
    root = pyfuncitem.config.rootpath
    done = subprocess.run(command, cwd=root, env={**os.environ, ALONE: "1", "PYTEST_ADDOPTS": ""}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout, done.stdout
    return True


@pytest.fixture(scope="session")
def tiny_backbone_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like a Qwen3-VL checkpoint: config, tokenizer, processor and random weights (73 thousand of them)."""
    folder = tmp_path_factory.mktemp("tiny_qwen3_vl")
    ids = _save_processor(folder)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Qwen3VLForConditionalGeneration(_config(ids))
        for parameter in model.parameters():  # far from zero, so that every input shows in the output
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    return folder


def _save_processor(folder: Path) -> dict[str, int]:
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(WORDS, trainers.BpeTrainer(vocab_size=320, initial_alphabet=alphabet, show_progress=False))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|im_end|>", pad_token="<|endoftext|>")  # type: ignore[no-untyped-call]
    tokenizer.add_special_tokens({"additional_special_tokens": list(SPECIAL_TOKENS)})
    shape = {"patch_size": 8, "temporal_patch_size": 2, "merge_size": 2}
    half = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    clip_size = {"shortest_edge": 16 * 16, "longest_edge": 64 * 64 * 8}
    processor = Qwen3VLProcessor(  # type: ignore[no-untyped-call]
        image_processor=Qwen2VLImageProcessor(**shape, **half, size={"shortest_edge": 16 * 16, "longest_edge": 64 * 64}),  # type: ignore[arg-type]
        tokenizer=tokenizer,
        video_processor=Qwen3VLVideoProcessor(**shape, **half, size=clip_size, cap_pixels_per_frame=True),  # type: ignore[arg-type]
        chat_template=CHAT_TEMPLATE,
    )
    processor.save_pretrained(folder)
    return {token: int(tokenizer.convert_tokens_to_ids(token)) for token in SPECIAL_TOKENS} | {"": len(tokenizer)}  # type: ignore[arg-type]


def _config(ids: dict[str, int]) -> Qwen3VLConfig:
    return Qwen3VLConfig(
        text_config={
            "vocab_size": ids[""] + 5,
            "hidden_size": HIDDEN_SIZE,
            "intermediate_size": 48,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "max_position_embeddings": 1024,
            "pad_token_id": ids["<|endoftext|>"],
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 2, 2], "mrope_interleaved": True},
        },
        vision_config={
            "depth": 2,
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_heads": 2,
            "patch_size": 8,
            "temporal_patch_size": 2,
            "spatial_merge_size": 2,
            "out_hidden_size": HIDDEN_SIZE,
            "num_position_embeddings": 16,
            "deepstack_visual_indexes": [0, 1],
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=True,
    )


@pytest.fixture
def _keeps_ctrl_c() -> Iterator[None]:
    """Lightning ignores SIGINT from the first KeyboardInterrupt on."""
    handler = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, handler)


@pytest.fixture
def tiny_backbone(tiny_backbone_path: Path) -> Backbone:
    """A freshly loaded tiny backbone; a model puts its adapters into it."""
    return load_backbone(tiny_backbone_path, options=ProcessorOptions(num_frames=4, max_thought_tokens=48))


@pytest.fixture(scope="session")
def make_model(tiny_backbone_path: Path) -> Callable[..., DualLoRAModel]:
    """Makes models on the tiny backbone; adapters and gate are random, so that every part of it shows in the output.

    Each has tensors of its own: a copy of the first one of its settings, which takes half as long as another one.
    """
    made: dict[str, DualLoRAModel] = {}

    def make(**settings: object) -> DualLoRAModel:
        key = repr(sorted(settings.items()))
        if key not in made:
            made[key] = build(**settings)  # type: ignore[arg-type]
        return copy.deepcopy(made[key])

    def build(*, seed: int = 0, num_queries: int = 2, dropout: float = 0.0, **settings: object) -> DualLoRAModel:
        backbone = load_backbone(tiny_backbone_path, options=ProcessorOptions(num_frames=4, max_thought_tokens=48))
        spec = LoraSpec(rank=4, alpha=8, dropout=dropout)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            adapters = {"reasoning": spec, "embedding": spec, "num_queries": num_queries, **settings}
            model = DualLoRAModel(backbone, **adapters)  # type: ignore[arg-type]
            for name, parameter in model.named_parameters():
                if ".lora_B." in name:
                    torch.nn.init.normal_(parameter, std=0.1)
        return model.eval()

    return make


@pytest.fixture
def tiny_model(make_model: Callable[..., DualLoRAModel]) -> DualLoRAModel:
    """A model of the kv interface with two queries, in eval mode, nothing trainable yet."""
    return make_model()


@pytest.fixture(scope="session")
def tiny_bundle(tiny_backbone_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved bundle on the tiny backbone: random adapters that show in every vector, a gate with a threshold and a curve."""
    backbone = load_backbone(tiny_backbone_path, options=ProcessorOptions(num_frames=4, max_thought_tokens=48))
    spec = LoraSpec(rank=4, alpha=8)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = DualLoRAModel(backbone, reasoning=spec, embedding=spec, num_queries=2)
        for name, parameter in model.named_parameters():
            if ".lora_B." in name:
                torch.nn.init.normal_(parameter, std=0.1)
    model.gate.threshold = 0.5
    rates = {0.0: 1.0, 0.5: 0.5, 1.0: 0.0}
    model.gate.curve = [
        {"threshold": threshold, "quality": 50.0 + 10.0 * rate, "think_rate": rate, "query_tokens": 8.0 * rate, "candidate_tokens": 6.0 * rate}
        | {"reasoning_tokens": 20.0 * rate, "candidates_per_query": 2.0}
        for threshold, rate in rates.items()
    ]
    return save_bundle(
        model, tmp_path_factory.mktemp("bundle") / "bundle", provenance={"stage": "3_gate", "run": "tiny"}, backbone_path=tiny_backbone_path
    )


@pytest.fixture
def make_items() -> Callable[[int], list[Item]]:
    """Makes items of every modality in turn: text, image, video, two images, image without text; seeded by their number."""

    def picture(seed: int, width: int = 32, height: int = 32) -> Image.Image:
        pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
        return Image.fromarray(pixels)

    def make(number: int) -> list[Item]:
        kinds = [
            lambda seed: Item(text=f"the capital of country {seed}", instruction="Find the flag."),
            lambda seed: Item(text="which country", images=(picture(seed),)),
            lambda seed: Item(text="what moves here", video=tuple(picture(seed * 100 + frame) for frame in range(4))),
            lambda seed: Item(text="what do they share", images=(picture(seed), picture(seed + 1, width=48))),
            lambda seed: Item(images=(picture(seed, height=48),)),
        ]
        return [kinds[index % len(kinds)](index) for index in range(number)]

    return make


@pytest.fixture(scope="session")
def smoke_settings(tiny_backbone_path: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Overrides of the smoke profile for a pipeline of seconds: two tasks, the tiny backbone, a folder of this session."""
    return [
        f"output_dir={tmp_path_factory.mktemp('runs')}",
        f"backbone.path={tiny_backbone_path}",
        "backbone.max_thought_tokens=256",
        "data.tasks=[DigitSum, FlagName]",
        "trainer.progress_bar=false",
        "evaluation.max_queries=4",
    ]


@pytest.fixture(scope="session")
def finished_run(smoke_settings: list[str]) -> RunConfig:
    """The settings of a run named "done" that went through all stages to the table."""
    config = load_config("mini", folder=CONFIGS, profile="smoke", overrides=[*smoke_settings, "name=done"])
    report = run_pipeline(config, "all")
    assert report is not None
    assert {row.name for row in report.rows} == {"DigitSum", "FlagName"}
    return config
