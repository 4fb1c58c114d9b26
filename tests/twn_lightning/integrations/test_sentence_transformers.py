"""A bundle in sentence-transformers: the same vectors, saved and loaded, and taught without thoughts."""

from __future__ import annotations

import base64
import io
import json
import pickle
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image

from twn_lightning.batches import Item
from twn_lightning.checkpoints import CONFIG
from twn_lightning.encoder import Encoder
from twn_lightning.errors import ConfigError, DataError
from twn_lightning.models.adapters import part_of
from twn_lightning.models.outputs import Decoding

pytest.importorskip("sentence_transformers")

from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss, MultipleNegativesRankingLoss

from twn_lightning.integrations import sentence_transformers as integration
from twn_lightning.integrations.sentence_transformers import TwnModule, export_sentence_transformers

DECODING = Decoding(max_new_tokens=6)


def picture(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (40, 32, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def encoder(tiny_bundle: Path) -> Encoder:
    return Encoder.from_pretrained(tiny_bundle, device="cpu", decoding=DECODING, merge=False)


@pytest.fixture(scope="module")
def model(encoder: Encoder) -> SentenceTransformer:
    """For tests that leave it as it is."""
    return SentenceTransformer(modules=[TwnModule(encoder)], device="cpu")


@pytest.fixture(scope="module")
def folder(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Exported with its backbone, and then moved."""
    exported = export_sentence_transformers(tiny_bundle, tmp_path_factory.mktemp("exported") / "model", with_backbone=True)
    return Path(shutil.move(exported, tmp_path_factory.mktemp("moved") / "model"))


def load(folder: Path, **settings: object) -> SentenceTransformer:
    return SentenceTransformer(str(folder), device="cpu", trust_remote_code=True, model_kwargs=settings)


@pytest.mark.parametrize("think", ["never", "always", "auto"])
def test_whatever_the_library_takes_has_the_encoders_vector(model: SentenceTransformer, encoder: Encoder, tmp_path: Path, think: str) -> None:
    frames, written = [picture(seed) for seed in range(4)], io.BytesIO()
    picture(1).save(written, format="PNG")
    file = tmp_path / "a.png"
    picture(9).save(file)
    turns = [
        {"role": "system", "content": "Say what it is."},
        {"role": "user", "content": [{"type": "image", "image": picture(1)}, {"type": "text", "text": "which"}]},
    ]
    theirs_and_ours: list[tuple[object, Any]] = [
        ("a red dot", "a red dot"),
        (picture(1), picture(1)),
        (np.array(picture(1)), picture(1)),
        (torch.from_numpy(np.array(picture(1))).permute(2, 0, 1), picture(1)),
        (str(file), file),
        (f"data:image/png;base64,{base64.b64encode(written.getvalue()).decode()}", picture(1)),
        (str(tmp_path / "none.png"), str(tmp_path / "none.png")),  # no file: words
        ({"text": "which", "image": picture(1)}, {"text": "which", "image": picture(1)}),
        (
            {"text": "which", "image": [picture(1), str(file)], "instruction": "Say it."},
            {"text": "which", "image": [picture(1), file], "instruction": "Say it."},
        ),
        ({"video": frames, "text": "what moves"}, {"video": frames, "text": "what moves"}),
        (np.stack([np.array(frame) for frame in frames]), {"video": frames}),
        ({"array": np.stack([np.array(frame) for frame in frames]), "video_metadata": None}, {"video": frames}),
        (turns, {"text": "which", "image": picture(1), "instruction": "Say what it is."}),
        ({"role": "user", "content": "a red dot"}, "a red dot"),
    ]
    theirs, ours = (list(side) for side in zip(*theirs_and_ours, strict=True))
    expected = encoder.encode(ours, instruction="Find it.", think=think)  # type: ignore[call-overload]
    found = model.encode(theirs, prompt="Find it.", think=think, batch_size=4)
    assert isinstance(found, np.ndarray)
    assert np.abs(found - expected.numpy()).max() <= 1e-5
    assert np.abs(model.encode(theirs[0], prompt="Find it.", think=think) - expected[0].numpy()).max() <= 1e-5


def test_a_data_address_that_is_no_base64_is_named(model: SentenceTransformer) -> None:
    with pytest.raises(DataError, match=r"data:image/png;base64,aa…: this data address holds no base64"):
        model.encode({"image": "data:image/png;base64,aaaaa"})


def test_clips_that_were_fetched_leave_no_file(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with fsspec.filesystem("memory").open("/theirs.mp4", "wb") as file:
        file.write(b"no clip")
    model = SentenceTransformer(modules=[TwnModule(tiny_bundle, think="never")], device="cpu")
    for read in (model.encode, model.preprocess):
        with pytest.raises(DataError, match=r"\.mp4: this video cannot be read"):  # it was there, and opened
            read([{"video": "memory://theirs.mp4"}])
        assert not list(tmp_path.iterdir())


def test_queries_and_documents_have_their_prompts_and_their_budgets(encoder: Encoder) -> None:
    model = SentenceTransformer(modules=[TwnModule(encoder)], device="cpu", prompts={"query": "Find the flag.", "document": ""})
    texts = [f"country {number}" for number in range(6)]
    gate = encoder.encode(texts, think="never", instruction="Find the flag.", return_thoughts=True).gate_probability
    encoder.model.gate.curve[1]["threshold"], threshold = float(gate.median()), encoder.model.gate.curve[1]["threshold"]
    try:  # 3 tokens an input are enough for half of the documents (6 tokens each if all think), and for none of the queries (8)
        queries, documents = (
            model.encode_query(texts, budget=3.5, convert_to_tensor=True),
            model.encode_document(texts, budget=3.5, convert_to_tensor=True),
        )
        assert torch.equal(queries, encoder.encode(texts, instruction="Find the flag.", think="never"))
        assert torch.equal(documents, encoder.encode(texts, side="document", budget=3.5))
        assert not torch.equal(documents, encoder.encode(texts, think="never"))
    finally:
        encoder.model.gate.curve[1]["threshold"] = threshold
    expected = encoder.similarity(queries, documents)
    assert (model.similarity(queries, documents) - expected).abs().max() <= 1e-5


def test_the_cost_of_a_vector_can_be_asked_for(model: SentenceTransformer, encoder: Encoder) -> None:
    found = model.encode(["a red dot", "blue"], think="always", output_value=None)
    expected = encoder.encode(["a red dot", "blue"], think="always", return_thoughts=True)
    assert [int(one["num_reasoning_tokens"]) for one in found] == expected.num_reasoning_tokens.tolist()
    assert [float(one["gate_probability"]) for one in found] == pytest.approx(expected.gate_probability.tolist(), abs=1e-6)


def test_an_exported_folder_with_its_backbone_works_wherever_it_is(folder: Path, encoder: Encoder) -> None:
    loaded = load(folder)
    assert loaded[0].model.backbone.path == str(folder / "backbone")
    assert np.abs(loaded.encode(["a red dot"], think="never") - encoder.encode(["a red dot"], think="never").numpy()).max() <= 1e-5
    assert (loaded.get_embedding_dimension(), loaded.max_seq_length, loaded.similarity_fn_name) == (32, 8192, "cosine")
    assert loaded.supports("image")
    assert loaded.supports(("image", "text"))
    with pytest.raises(ValueError, match="trust_remote_code=True"):  # the library's rule for any class outside of it
        SentenceTransformer(str(folder), device="cpu")


@pytest.mark.slow
def test_the_readme_of_an_exported_folder_runs(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture(0).save(tmp_path / "bird.png")
    (tmp_path / folder.name).symlink_to(folder)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), flags=re.DOTALL)[0], names)
    assert names["scores"].shape == (1, 2)


@pytest.mark.slow
def test_the_modules_example_runs(tiny_bundle: Path) -> None:
    lines = re.findall(r"^    (.*)$", str(integration.__doc__), flags=re.MULTILINE)
    assert len(lines) == 4
    names: dict[str, Any] = {}
    exec("\n".join(lines).replace("runs/mini/5_gate_refit/bundle", str(tiny_bundle)), names)
    assert names["scores"].shape == (1, 2)


def test_without_its_backbone_a_folder_names_it_by_its_whole_path(tiny_bundle: Path, tiny_backbone_path: Path, tmp_path: Path) -> None:
    exported = export_sentence_transformers(tiny_bundle, tmp_path / "model")
    stored = json.loads((exported / "bundle" / CONFIG).read_text())
    assert stored["backbone"]["path"] == str(tiny_backbone_path)
    assert stored["provenance"] == {"stage": "3_gate", "run": "tiny"}
    assert not (exported / "backbone").exists()
    with pytest.raises(ConfigError, match="model is there already"):
        export_sentence_transformers(tiny_bundle, tmp_path / "model")


@pytest.mark.slow
def test_settings_are_given_when_loading_and_kept_when_saving(folder: Path, tmp_path: Path, encoder: Encoder) -> None:
    model = load(folder, think="never", max_prompt_tokens=64)
    model.save_pretrained(str(tmp_path / "again"))
    again = load(tmp_path / "again")
    assert again[0].get_config_dict() == {"think": "never", "budget": None, "max_prompt_tokens": 64, "with_backbone": True}
    assert again[0].model.backbone.path == str(tmp_path / "again" / "backbone")
    assert np.array_equal(again.encode(["a red dot"]), model.encode(["a red dot"]))
    assert load(folder, budget=4, dtype=torch.bfloat16)[0].model.backbone.model.dtype == torch.bfloat16
    for settings, message in (
        ({"attn_implementation": "eager"}, "attn_implementation; this model takes think, budget"),
        ({"think": "sometimes"}, "think is 'sometimes'"),
        ({"think": "always", "budget": 4}, "leave one of them out"),
    ):
        with pytest.raises(ConfigError, match=message):
            load(folder, **settings)


def test_saving_over_the_folder_that_was_loaded_keeps_its_backbone(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "model")
    model = load(tmp_path / "model")
    model.save_pretrained(str(tmp_path / "model"))
    assert np.array_equal(load(tmp_path / "model").encode(["a"], think="never"), model.encode(["a"], think="never"))


def test_what_cannot_be_understood_is_refused(model: SentenceTransformer) -> None:
    for wrong, message in (
        ({"text": "a", "audio": "b.wav"}, "audio"),
        (np.zeros((4, 4, 3)), "array .* of float64"),
        ([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "the turns user, assistant"),
        ("", "It is empty"),
    ):
        with pytest.raises((DataError, ValueError), match=message):
            model.encode([wrong])
    with pytest.raises(ConfigError, match="processing_kwargs: this model has no such option"):
        model.encode(["a"], processing_kwargs={"text": {"max_length": 3}})


def embeddings_gradient(model: SentenceTransformer, loss: torch.nn.Module) -> dict[str, torch.Tensor]:
    columns = ["a red dot", "blue", "green"], [picture(1), {"text": "fish", "image": picture(2)}, "no picture"]
    model.train()
    model.zero_grad()
    loss([model.preprocess(column) for column in columns], torch.arange(3)).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def test_losses_reach_the_embedding_adapter_and_the_queries_alone_whole_or_in_pieces(tiny_bundle: Path) -> None:
    model = SentenceTransformer(modules=[TwnModule(tiny_bundle, think="never")], device="cpu")
    whole = embeddings_gradient(model, MultipleNegativesRankingLoss(model))
    assert {part_of(name.removeprefix("0.model.")) for name in whole} == {"embedding", "queries"}
    assert all(gradient.abs().max() > 0 for gradient in whole.values())
    pieces = embeddings_gradient(model, CachedMultipleNegativesRankingLoss(model, mini_batch_size=2))
    assert pieces.keys() == whole.keys()
    for name, gradient in whole.items():
        assert (pieces[name] - gradient).abs().max() <= 1e-4 * gradient.abs().max()


@pytest.mark.slow
def test_what_the_librarys_trainer_teaches_is_saved_as_a_bundle(tiny_bundle: Path, tmp_path: Path) -> None:
    model = SentenceTransformer(modules=[TwnModule(tiny_bundle, think="never")], device="cpu")
    before = model.encode(["a red dot", picture(0)])
    rows = Dataset.from_dict({"anchor": ["a red dot", "blue", "x", "y"], "positive": ["red", "sky", "z", "w"]})
    arguments = SentenceTransformerTrainingArguments(
        str(tmp_path / "run"),
        max_steps=2,
        per_device_train_batch_size=4,
        learning_rate=0.01,
        report_to=[],
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
    )
    SentenceTransformerTrainer(model=model, args=arguments, train_dataset=rows, loss=MultipleNegativesRankingLoss(model)).train()
    after = model.encode(["a red dot", picture(0)])
    assert np.abs(after - before).max() > 1e-3
    model.save_pretrained(str(tmp_path / "taught"), create_model_card=False)
    assert np.array_equal(load(tmp_path / "taught").encode(["a red dot", picture(0)]), after)
    taught = Encoder.from_pretrained(tmp_path / "taught" / "bundle", device="cpu")
    assert np.abs(taught.encode(["a red dot", picture(0)], think="never").numpy() - after).max() <= 1e-5
    provenance = json.loads((tmp_path / "taught" / "bundle" / CONFIG).read_text())["provenance"]
    assert provenance == {"stage": "3_gate", "run": "tiny", "trained_further_by": "sentence-transformers"}


def test_what_cannot_be_taught_or_saved_says_so(tiny_bundle: Path, tmp_path: Path, model: SentenceTransformer) -> None:
    with pytest.raises(ConfigError, match=r'model\[0\].think = "never"'):
        model(model.preprocess(["a red dot"]))
    merged = SentenceTransformer(modules=[TwnModule(tiny_bundle, think="never", merge=True)], device="cpu")
    with pytest.raises(ConfigError, match="A merged model cannot be trained"):
        merged(merged.preprocess(["a red dot"]))
    with pytest.raises(ConfigError, match="A merged model cannot be saved"):
        merged.save_pretrained(str(tmp_path / "merged"))


def test_what_another_process_gets_gives_the_same_vectors(folder: Path) -> None:
    """As for `encode` with a list of devices, which sends the model to a process for each."""
    sent = load(folder, think="never", dtype="float32")
    with torch.no_grad():
        sent[0].model.queries.add_(0.1)  # learnt since it was loaded
    received = SentenceTransformer(modules=[pickle.loads(pickle.dumps(sent[0]))], device="cpu")
    assert np.array_equal(received.encode(["a red dot"]), sent.encode(["a red dot"]))
    with pytest.raises(ConfigError, match="made of a model in memory"):
        pickle.dumps(TwnModule(Encoder(sent[0].model)))


def test_text_that_is_too_long_is_cut_alike_for_training(tiny_bundle: Path, make_items: Callable[[int], list[Item]]) -> None:
    model = SentenceTransformer(modules=[TwnModule(tiny_bundle, think="never", max_prompt_tokens=40)], device="cpu")
    with pytest.warns(UserWarning, match="cut to fit into 40 tokens"):
        expected = model.encode(["word " * 100])
    assert np.abs(model(model.preprocess(["word " * 100]))["sentence_embedding"].detach().numpy() - expected).max() <= 1e-5
