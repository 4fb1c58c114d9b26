"""A bundle as a model of mteb: its tasks on words, pictures and clips, with any think mode.

    from twn_lightning.integrations.mteb import MtebEncoder
    import mteb
    model = MtebEncoder("runs/mini/5_gate_refit/bundle", think="auto")
    results = mteb.evaluate(model, mteb.get_tasks(tasks=["STS12", "CIFAR10ZeroShot"]))

Results are kept by mteb under the bundle's digest and every setting that a vector depends on, so that no result is taken for another's.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from twn_lightning.encoder import Encoder, Think
from twn_lightning.errors import ConfigError, DataError
from twn_lightning.integrations.pictures import with_pictures

try:
    from mteb.models.abs_encoder import AbsEncoder
    from mteb.models.model_meta import ModelMeta, ScoringFunction
    from mteb.types import PromptType
except ImportError as error:
    raise ConfigError(f"This needs the package mteb ({error}): pip install 'twn-lightning[mteb]'.") from error

if TYPE_CHECKING:
    from mteb.abstasks.task_metadata import TaskMetadata

_FIELDS = ("text", "image", "video")


class MtebEncoder(AbsEncoder):  # type: ignore[misc]
    """What `mteb.evaluate` takes for a model.

    A task's instruction is the instruction of queries, and of inputs that are neither query nor document; documents have one where the task has one
    for them. An input that cannot be encoded (mostly an empty document) has a vector of zeros, which is as similar to everything as to nothing.

    Args:
        bundle: Folder that a stage wrote, or an encoder that has loaded it.
        think: Whether inputs are thought about; "auto" lets the gate decide for each input.
        budget: Reasoning tokens an input, on average, for think="auto"; see `Encoder.encode`.
        device: Where to run; None takes a GPU if there is one.
        name: "organisation/model" in mteb's results; None for "twn_lightning/" and the last parts of the bundle's path.
        prompts: Instructions by name or type of a task, or "query" and "document", instead of the tasks' own.

    Attributes:
        num_without_vector: Inputs that could not be encoded so far.

    Raises:
        CheckpointError: The bundle cannot be loaded.
        ConfigError: A setting is out of range, or the encoder was not made of a bundle.
    """

    def __init__(
        self,
        bundle: str | Path | Encoder,
        *,
        think: Think = "auto",
        budget: float | None = None,
        device: str | None = None,
        name: str | None = None,
        prompts: Mapping[str, str] | None = None,
    ) -> None:
        self.encoder = bundle if isinstance(bundle, Encoder) else Encoder.from_pretrained(bundle, device=device)
        self.encoder.threshold(think=think, budget=budget)
        self.think = think
        self.budget = budget
        self.prompts_dict = dict(prompts or {})
        self.num_without_vector = 0
        self.mteb_model_meta = _meta(self.encoder, think=think, budget=budget, name=name)

    def encode(
        self,
        inputs: Iterable[Mapping[str, Any]],
        *,
        task_metadata: TaskMetadata,
        hf_split: str,
        hf_subset: str,
        prompt_type: PromptType | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Vectors of a task's inputs, float32 ``(N, D)``.

        Args:
            inputs: Batches, as mteb loads them: columns of "text", "image" (PIL images, or lists of them) and "video" (decoders or frames). The
                batches of mteb (encode_kwargs={"batch_size": …}) are how many inputs are looked at together; how many run together suits the device.
            task_metadata: Whose inputs.
            hf_split: Not used.
            hf_subset: Not used.
            prompt_type: Query, document, or neither (which counts as a query).
            **kwargs: "show_progress_bar"; "batch_size", which has made the batches; "precision", which must be float32.

        Raises:
            ConfigError: Another precision is asked for.
            DataError: None of the inputs can be encoded.
        """
        del hf_split, hf_subset
        if kwargs.get("precision") not in (None, "float32"):
            raise ConfigError(f"precision is {kwargs['precision']!r}, but these vectors are float32: leave it out, or compress them afterwards.")
        batches = track(inputs, description=task_metadata.name, console=Console(stderr=True), disable=not kwargs.get("show_progress_bar", True))
        instruction = self.instruction(task_metadata, prompt_type)
        parts: list[Tensor] = []
        errors: list[str] = []
        for batch in batches:
            encoding = self.encoder.encode(
                [with_pictures(row, num_frames=self.encoder.model.processor.options.num_frames) for row in _rows(batch)],
                side="document" if prompt_type == PromptType.document else "query",
                instruction=instruction,
                think=self.think,
                budget=self.budget,
                show_progress=False,
                on_error="skip",
                return_thoughts=True,
            )
            parts.append(encoding.vectors)
            errors += encoding.errors.values()
        vectors = torch.cat(parts)
        if len(errors) == len(vectors):
            raise DataError(f"None of the {len(vectors)} inputs of {task_metadata.name} can be encoded. The first: {errors[0]}")
        self.num_without_vector += len(errors)
        return vectors.nan_to_num(0.0)

    def instruction(self, task_metadata: TaskMetadata, prompt_type: PromptType | None) -> str | None:
        """What the vectors of a task's inputs are for, or None."""
        own = task_metadata.prompt
        for_documents = {task_metadata.name, task_metadata.type, "document"} & set(self.prompts_dict) or (isinstance(own, dict) and "document" in own)
        if prompt_type == PromptType.document and not for_documents:
            return None
        instruction = self.get_task_instruction(task_metadata, prompt_type)
        return instruction if isinstance(instruction, str) and instruction else None


def _rows(batch: Mapping[str, Any]) -> list[dict[str, Any]]:
    columns = {name: batch[name] for name in _FIELDS if name in batch}
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _meta(encoder: Encoder, *, think: Think, budget: float | None, name: str | None) -> ModelMeta:
    made_by, model, backbone = encoder.provenance(), encoder.model, encoder.model.backbone.path
    assert encoder.bundle is not None, "provenance has asked for it"
    settings = {key: value for key, value in made_by.items() if key not in ("bundle", "device")}
    run = [part for part in encoder.bundle.resolve().parts[-3:] if part != "bundle"]
    return ModelMeta(
        loader=None,
        name=name or f"twn_lightning/{'-'.join(run)}",
        revision=made_by["bundle"],
        release_date=None,
        languages=None,
        n_parameters=sum(parameter.numel() for parameter in model.parameters()),
        n_embedding_parameters=model.backbone.model.config.get_text_config().vocab_size * encoder.dim,
        memory_usage_mb=sum(parameter.numel() * parameter.element_size() for parameter in model.parameters()) / 2**20,
        max_tokens=encoder.max_prompt_tokens,
        embed_dim=encoder.dim,
        license=None,
        open_weights=None,
        public_training_code=None,
        public_training_data=None,
        framework=["PyTorch", "Transformers"],
        similarity_fn_name=ScoringFunction.COSINE,
        use_instructions=True,
        training_datasets=None,
        adapted_from=None if Path(backbone).is_dir() else backbone,
        modalities=["text", "image", "video"],
        experiment_kwargs={
            "think": think,
            **({} if budget is None else {"budget": budget}),
            "settings": hashlib.blake2b(json.dumps(settings, sort_keys=True).encode(), digest_size=4).hexdigest(),
        },
    )
