"""A bundle in mteb: its own mock tasks, and what reaches the encoder."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from twn_lightning.encoder import Encoder
from twn_lightning.errors import ConfigError, DataError
from twn_lightning.models.dual_lora import DualLoRAModel
from twn_lightning.models.outputs import Decoding

pytest.importorskip("mteb")

import mteb
from mteb.mocks.mock_tasks import MockAny2AnyRetrievalT2ITask, MockRetrievalTask, MockSTSTask
from mteb.models.models_protocols import EncoderProtocol
from mteb.results import TaskResult
from mteb.types import PromptType

from twn_lightning.integrations import mteb as integration
from twn_lightning.integrations.mteb import MtebEncoder

pytestmark = pytest.mark.ecosystem

STS = MockSTSTask().metadata


@pytest.fixture(scope="module")
def encoder(tiny_bundle: Path) -> Encoder:
    return Encoder.from_pretrained(tiny_bundle, device="cpu", decoding=Decoding(max_new_tokens=4))


def encoded(
    model: MtebEncoder, batches: Sequence[Mapping[str, Any]], *, task: Any = STS, prompt_type: PromptType | None = None, **options: Any
) -> torch.Tensor:
    vectors: torch.Tensor = model.encode(
        batches, task_metadata=task, hf_split="test", hf_subset="default", prompt_type=prompt_type, show_progress_bar=False, **options
    )
    return vectors


def picture(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (32, 40, 3), dtype=np.uint8))


@pytest.mark.slow
def test_every_mock_task_on_words_and_pictures_runs(encoder: Encoder) -> None:
    model = MtebEncoder(encoder, think="auto")
    assert isinstance(model, EncoderProtocol)
    run = mteb.mock_run(model)
    passed = {name for name, status in run.items() if isinstance(status, TaskResult)}
    assert run.all_passed, run.to_markdown()  # those on clips are left out where torchcodec is not installed
    assert len(passed) >= 40, run.to_markdown()
    assert model.num_without_vector == 0


@pytest.mark.parametrize("task", [MockRetrievalTask(), MockAny2AnyRetrievalT2ITask()], ids=lambda task: task.metadata.name)
def test_evaluating_keeps_each_think_mode_apart(task: Any, encoder: Encoder, tmp_path: Path) -> None:
    cache = mteb.ResultCache(tmp_path)
    for think in ("never", "always", "never"):
        results = mteb.evaluate(MtebEncoder(encoder, think=think), task, cache=cache, show_progress_bar=False)
        assert 0.0 <= results.task_results[0].get_score() <= 1.0
    assert len({path.parent for path in tmp_path.rglob(f"{task.metadata.name}.json")}) == 2


def test_the_modules_example_runs(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = re.findall(r"^    (.*)$", str(integration.__doc__), flags=re.MULTILINE)
    assert len(lines) == 4
    names: dict[str, Any] = {}
    get_tasks = mteb.get_tasks
    monkeypatch.setattr(mteb, "get_tasks", lambda tasks: [MockSTSTask() for _ in get_tasks(tasks=tasks)][:1])  # the named ones would be fetched
    monkeypatch.setattr(mteb, "evaluate", functools.partial(mteb.evaluate, cache=None))
    exec("\n".join(lines).replace("runs/mini/5_gate_refit/bundle", str(tiny_bundle)), names)
    assert [result.task_name for result in names["results"].task_results] == ["MockSTSTask"]


def test_the_meta_data_says_what_is_known_and_nothing_else(encoder: Encoder, tiny_bundle: Path) -> None:
    meta = MtebEncoder(encoder, budget=3.0).mteb_model_meta
    assert (meta.name, meta.revision) == (f"twn_lightning/{tiny_bundle.parts[-3]}-{tiny_bundle.parts[-2]}", encoder.provenance()["bundle"])
    assert (meta.embed_dim, meta.max_tokens, meta.similarity_fn_name.value) == (32, 8192, "cosine")
    assert meta.modalities == ["text", "image", "video"]
    assert meta.n_parameters == sum(parameter.numel() for parameter in encoder.model.parameters())
    assert meta.n_embedding_parameters == encoder.model.backbone.model.get_input_embeddings().weight.numel()  # type: ignore[operator]
    unknown = ("training_datasets", "public_training_data", "public_training_code", "license", "languages", "release_date", "adapted_from")
    assert [getattr(meta, name) for name in unknown] == [None] * len(unknown)
    others = [MtebEncoder(encoder), MtebEncoder(encoder, think="never"), MtebEncoder(Encoder(encoder.model, bundle=tiny_bundle), budget=3.0)]
    assert len({str(other.mteb_model_meta.experiment_kwargs) for other in others} | {str(meta.experiment_kwargs)}) == 4
    assert MtebEncoder(encoder, name="me/mine").mteb_model_meta.name == "me/mine"


def test_queries_are_instructed_and_documents_where_the_task_says_so(encoder: Encoder) -> None:
    model, batch = MtebEncoder(encoder, think="never"), {"text": ["a red dot", "blue"]}
    told = SimpleNamespace(name="MockSTS", type="STS", prompt={"query": "Find it."})
    for task, prompt_type, instruction in (
        (told, PromptType.query, "Find it."),
        (told, PromptType.document, None),
        (SimpleNamespace(name="MockSTS", type="STS", prompt={"query": "Find it.", "document": "Keep it."}), PromptType.document, "Keep it."),
        (SimpleNamespace(name="MockSTS", type="STS", prompt="Compare."), None, "Compare."),
    ):
        expected = encoder.encode(batch["text"], instruction=instruction, think="never")
        assert torch.equal(encoded(model, [batch], task=task, prompt_type=prompt_type), expected)
    own = MtebEncoder(encoder, think="never", prompts={"query": "Mine.", "document": "Yours."})
    assert own.instruction(told, PromptType.query) == "Mine."
    assert own.instruction(told, PromptType.document) == "Yours."


def test_the_side_decides_the_budgets_threshold(encoder: Encoder) -> None:
    model, task = MtebEncoder(encoder, budget=3.5), SimpleNamespace(name="MockSTS", type="STS", prompt=None)
    gate, texts = encoder.model.gate, [f"country {number}" for number in range(6)]
    own = gate.curve
    try:
        probability = encoder.encode(texts, think="never", return_thoughts=True).gate_probability
        gate.curve = [point | {"threshold": float(probability.median())} if point["threshold"] == 0.5 else point for point in own]
        for prompt_type, side in ((PromptType.query, "query"), (PromptType.document, "document")):
            expected = encoder.encode(texts, side=side, budget=3.5)  # type: ignore[call-overload]
            assert torch.equal(encoded(model, [{"text": texts}], task=task, prompt_type=prompt_type), expected)
            assert torch.equal(expected, encoder.encode(texts, think="never")) == (side == "query")
    finally:
        gate.curve = own


class Decoder:
    """What torchcodec's VideoDecoder offers, of frames that are there."""

    def __init__(self, frames: torch.Tensor) -> None:
        self.metadata = SimpleNamespace(num_frames=len(frames))
        self._frames = frames

    def get_frames_at(self, *, indices: list[int]) -> SimpleNamespace:
        return SimpleNamespace(data=self._frames[indices])


def test_columns_of_pictures_and_clips_become_inputs(encoder: Encoder) -> None:
    model = MtebEncoder(encoder, think="never")
    frames = [picture(seed) for seed in range(9)]
    clip = torch.stack([torch.from_numpy(np.array(frame)).permute(2, 0, 1) for frame in frames])
    chosen = [frames[index] for index in (0, 3, 5, 8)]  # 4 frames, evenly spaced over 0 to 8: 0, 2.67, 5.33, 8
    batches: list[dict[str, Any]] = [
        {"text": ["which", ""], "image": [picture(1), [picture(1), picture(2)]]},
        {"image": [picture(3), torch.from_numpy(np.array(picture(4)))], "label": [0, 1]},
        {"video": [Decoder(clip), clip[[0, 3, 5, 8]]], "text": ["what moves", "what moves"]},
    ]
    ours: list[Any] = [{"text": "which", "image": picture(1)}, {"image": [picture(1), picture(2)]}, picture(3), picture(4)]
    ours += [{"video": chosen, "text": "what moves"}] * 2
    task = SimpleNamespace(name="MockSTS", type="STS", prompt="Compare.")
    assert (encoded(model, batches, task=task) - encoder.encode(ours, instruction="Compare.", think="never")).abs().max() <= 1e-5


def test_an_input_without_content_is_as_similar_to_everything_as_to_nothing(encoder: Encoder) -> None:
    model, task = MtebEncoder(encoder, think="never"), SimpleNamespace(name="MockSTS", type="STS", prompt={"query": "Find it."})
    with pytest.warns(UserWarning, match="1 of 2 inputs were skipped"):
        vectors = encoded(model, [{"text": ["", "a red dot"]}, {"text": ["blue"]}], task=task, prompt_type=PromptType.document)
    assert torch.equal(vectors[0], torch.zeros(32))
    assert model.similarity(vectors, vectors)[0].tolist() == [0.0, 0.0, 0.0]
    assert torch.allclose(vectors[1:].norm(dim=1), torch.ones(2))
    assert model.num_without_vector == 1
    with pytest.warns(UserWarning, match="1 of 1 inputs"), pytest.raises(DataError, match="None of the 1 inputs of MockSTS can be encoded"):
        encoded(model, [{"text": [""]}], task=task, prompt_type=PromptType.document)


def test_what_cannot_be_done_is_refused(encoder: Encoder, tiny_model: DualLoRAModel) -> None:
    with pytest.raises(ConfigError, match="precision is 'int8'"):
        encoded(MtebEncoder(encoder), [{"text": ["a"]}], precision="int8")
    with pytest.raises(ConfigError, match="think is 'sometimes'"):
        MtebEncoder(encoder, think="sometimes")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="which nothing names"):
        MtebEncoder(Encoder(tiny_model))
