"""A bundle as a module of sentence-transformers: its `encode`, `encode_query`, `encode_document`, saving, loading, and training without thoughts.

    from twn_lightning.integrations.sentence_transformers import TwnModule
    from sentence_transformers import SentenceTransformer
    model = SentenceTransformer(modules=[TwnModule("runs/mini/5_gate_refit/bundle")])
    scores = model.similarity(model.encode_query("a red bird"), model.encode_document(["a robin", "a blue fish"]))

That library's prompts are this one's instructions. `encode` gives what `Encoder.encode` gives. Its losses and its trainer teach the embedding adapter
and the queries, as stage 1 does: vectors of what was read, without a thought, so that the module's think mode must be "never" there. The gate and the
thoughts stay what they were, made for the vectors of before: go on with "never", or train stages 2 and 3 again.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from twn_lightning.batches import Inputs
from twn_lightning.checkpoints import CONFIG, BundleDefaults, save_bundle
from twn_lightning.encoder import MAX_PROMPT_TOKENS, Encoder, Side, Think
from twn_lightning.engine.prompts import make_prompts
from twn_lightning.errors import ConfigError, DataError
from twn_lightning.inputs import to_item
from twn_lightning.integrations.export import README, check_free, new_folder
from twn_lightning.integrations.pictures import with_pictures

try:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modality import infer_modality, is_message_dict
    from sentence_transformers.base.modules import InputModule
except ImportError as error:
    raise ConfigError(
        f"This needs the package sentence-transformers, version 6 ({error}): pip install 'twn-lightning[sentence-transformers]'."
    ) from error

MODALITIES = ("text", "image", "video", "message")
BUNDLE, BACKBONE = "bundle", "backbone"
_RENAMED = {"images_per_row": "num_images_per_sample", "videos_per_row": "num_videos_per_sample"}
"""Fields of `Inputs` that sentence-transformers has names for, by which it cuts batches in pieces."""

TEMPLATE = Path(__file__).with_name("sentence_transformers_readme.md")


class TwnModule(InputModule):  # type: ignore[misc]
    """The only module of a SentenceTransformer that is a bundle.

    Args:
        bundle: Its folder, or an encoder that has loaded it.
        think: Whether inputs are thought about before they are embedded, unless a call of `encode` says otherwise.
        budget: Reasoning tokens an input, on average, for think="auto"; see `Encoder.encode`.
        max_prompt_tokens: The text of a longer prompt is cut; of an encoder its own.
        with_backbone: Whether saving copies the backbone too, so that the folder can be moved to another machine.
        dtype: Of the backbone's weights; None for the bundle's.
        merge: Faster, and equal up to rounding, but neither trained nor saved; see `Encoder.from_pretrained`.

    Raises:
        CheckpointError: The bundle cannot be loaded.
        ConfigError: A setting is out of range.
    """

    config_file_name = "twn_module.json"
    config_keys = ["think", "budget", "max_prompt_tokens", "with_backbone"]  # noqa: RUF012 - as the base class has it
    forward_kwargs = {"task", "think", "budget"}  # noqa: RUF012

    def __init__(
        self,
        bundle: str | Path | Encoder,
        *,
        think: Think = "auto",
        budget: float | None = None,
        max_prompt_tokens: int = MAX_PROMPT_TOKENS,
        with_backbone: bool = False,
        dtype: str | None = None,
        merge: bool = False,
    ) -> None:
        super().__init__()
        if not isinstance(bundle, Encoder):
            bundle = Encoder.from_pretrained(bundle, device="cpu", dtype=dtype, max_prompt_tokens=max_prompt_tokens, merge=merge)
        bundle.threshold(think=think, budget=budget)
        self.encoder = bundle
        self.model = bundle.model
        if not self.model.is_merged:
            self.model.set_trainable("embedding", "queries")
        self.think = think
        self.budget = budget
        self.max_prompt_tokens = bundle.max_prompt_tokens
        self.with_backbone = with_backbone
        self._has_learnt = False

    @property
    def tokenizer(self) -> object:
        """Of the backbone."""
        return self.model.processor.tokenizer  # type: ignore[attr-defined]

    @property
    def modalities(self) -> list[str]:
        """What an input may be or hold."""
        return list(MODALITIES)

    @property
    def max_seq_length(self) -> int:
        """Tokens of the longest prompt whose text is not cut."""
        return self.max_prompt_tokens

    def get_embedding_dimension(self) -> int:
        """D, length of a vector."""
        return self.encoder.dim

    def preprocess(self, inputs: Sequence[object], prompt: str | None = None, **kwargs: object) -> dict[str, Any]:
        """What `forward` reads: for `encode` the inputs themselves, else (for training) their prompts as tensors.

        Args:
            inputs: As sentence-transformers takes them: strings (of a picture or a clip its path or address), PIL images, arrays, dicts of "text",
                "image", "video" and "instruction", or a conversation of one user's turn, perhaps behind a system's.
            prompt: The instruction of inputs that bring none.
            **kwargs: Of `forward`.

        Raises:
            ConfigError: An option of that library's own processors.
            DataError: An input is none of these, or cannot be read.
        """
        if unknown := {key for key, value in kwargs.items() if value is not None} - self.forward_kwargs:
            raise ConfigError(f"{', '.join(sorted(unknown))}: this model has no such option; how prompts are made is written in its bundle.")
        values = [_fields(value, prompt, num_frames=self.model.processor.options.num_frames) for value in inputs]
        if torch.is_inference_mode_enabled():
            return {"items": values}
        with ExitStack() as copies:
            items = {number: to_item(value, copies=copies) for number, value in enumerate(values)}
            prompts = make_prompts(self.model.processor, items, max_prompt_tokens=self.max_prompt_tokens)
        if prompts.inputs is None or prompts.errors:
            raise DataError(next(iter(prompts.errors.values())))
        fields = {field.name: getattr(prompts.inputs, field.name) for field in dataclasses.fields(Inputs)}
        return {_RENAMED.get(name, name): value for name, value in fields.items() if value is not None}

    def forward(
        self, features: dict[str, Any], task: str | None = None, think: Think | None = None, budget: float | None = None
    ) -> dict[str, Tensor]:
        """Adds "sentence_embedding", unit rows ``(B, D)``; of items also "thinks", "num_reasoning_tokens" and "gate_probability", each ``(B,)``.

        Args:
            features: Of `preprocess`. Tensors are embedded without thoughts, with gradient to the embedding adapter and the queries.
            task: "query" or "document", for the budget; None counts as a query.
            think: Instead of the module's own.
            budget: Instead of the module's own, which does not count either where `think` is given.

        Raises:
            ConfigError: Tensors, where the module would think; or an argument out of range.
        """
        budget = self.budget if budget is None and think is None else budget
        think = think or self.think
        if "items" not in features:
            return {**features, "sentence_embedding": self._learning(features, think)}
        side = cast("Side", task or "query")
        encoding = self.encoder.encode(
            features["items"], side=side, think=think, budget=budget, batch_size=len(features["items"]), show_progress=False, return_thoughts=True
        )
        found = {name: getattr(encoding, name) for name in ("thinks", "num_reasoning_tokens", "gate_probability")}
        return {"sentence_embedding": encoding.vectors.to(self.model.device), **found}

    def _learning(self, features: Mapping[str, Tensor], think: Think) -> Tensor:
        self._refuse_merged("trained")
        if think != "never":
            raise ConfigError(
                f'think is "{think}", but what sentence-transformers trains are vectors without thoughts: set model[0].think = "never" first. '
                "Vectors with thoughts are trained by stage 2."
            )
        self._has_learnt |= torch.is_grad_enabled()
        named = {field.name: features.get(_RENAMED.get(field.name, field.name)) for field in dataclasses.fields(Inputs)}
        return self.model.embed_prompts(Inputs(**named), max_tokens=None).vector  # type: ignore[arg-type]

    def save(self, output_path: str, *args: object, **kwargs: object) -> None:
        """Writes the bundle, and the backbone if the module is `with_backbone`; always as safetensors and plain tensors.

        Raises:
            CheckpointError: It cannot be written.
            ConfigError: The model is merged.
        """
        del args, kwargs
        self._refuse_merged("saved")
        folder, source = Path(output_path), self.model.backbone.path
        if self.with_backbone:
            _copy_backbone(source, folder / BACKBONE)
            source = BACKBONE
        save_bundle(self.model, folder / BUNDLE, provenance=self._provenance(), backbone_path=source)
        self.save_config(output_path)

    def __reduce__(self) -> tuple[Any, ...]:
        """For processes of their own (`encode` with a list of devices): each loads the bundle, and gets what may have been learnt since."""
        if self.encoder.bundle is None:
            raise ConfigError("This module was made of a model in memory: make it of a bundle's folder, so that other processes can load it too.")
        dtype = str(self.model.backbone.model.dtype).removeprefix("torch.")
        loading = {"dtype": dtype, "merge": self.model.is_merged, "decoding": self.encoder.decoding, "max_prompt_tokens": self.max_prompt_tokens}
        settings = {"think": self.think, "budget": self.budget, "with_backbone": self.with_backbone}
        learnt = {name: parameter.detach().cpu() for name, parameter in self.model.named_part_parameters("embedding", "queries").items()}
        return _reloaded, (self.encoder.bundle, loading, settings, learnt)

    def _refuse_merged(self, what: str) -> None:
        if self.model.is_merged:
            raise ConfigError(f"A merged model cannot be {what}: load it with merge=False.")

    def _provenance(self) -> dict[str, str | int | float]:
        stored = None if self.encoder.bundle is None else self.encoder.bundle / CONFIG
        provenance = json.loads(stored.read_text(encoding="utf-8")).get("provenance", {}) if stored is not None and stored.is_file() else {}
        return {**provenance, **({"trained_further_by": "sentence-transformers"} if self._has_learnt else {})}

    @classmethod
    def load(cls, model_name_or_path: str, subfolder: str = "", *, model_kwargs: Mapping[str, object] | None = None, **kwargs: Any) -> TwnModule:
        """The module that `save` wrote, in a folder or on the hub.

        Args:
            model_name_or_path: Folder, or name on the hub.
            subfolder: In it.
            model_kwargs: Settings of `TwnModule` to change: SentenceTransformer(path, model_kwargs={"think": "never"}).
            **kwargs: How sentence-transformers looks for files on the hub.

        Raises:
            ConfigError: There is no such setting.
            CheckpointError: The bundle cannot be loaded.
        """
        settings = dict(model_kwargs or {})
        known = [*cls.config_keys, "dtype", "merge"]
        if unknown := set(settings) - set(known):
            raise ConfigError(f"model_kwargs holds {', '.join(sorted(unknown))}; this model takes {', '.join(known)}.")
        if settings.get("dtype") is not None:
            settings["dtype"] = None if settings["dtype"] == "auto" else str(settings["dtype"]).removeprefix("torch.")
        where = {key: kwargs.get(key) for key in ("token", "cache_folder", "revision")} | {"local_files_only": bool(kwargs.get("local_files_only"))}
        folder = Path(cls.load_dir_path(model_name_or_path, subfolder=subfolder, **where) or Path(model_name_or_path) / subfolder)
        return cls(folder / BUNDLE, **{**cls.load_config(str(folder)), **settings})


def export_sentence_transformers(
    bundle: str | Path,
    folder: str | Path,
    *,
    think: Think = "auto",
    budget: float | None = None,
    with_backbone: bool = False,
    fallback: BundleDefaults | None = None,
) -> Path:
    """Writes a folder that SentenceTransformer loads.

    Args:
        bundle: Folder that a stage wrote.
        folder: To write; it must not be there, or be empty.
        think: See `TwnModule`.
        budget: See `TwnModule`.
        with_backbone: See `TwnModule`.
        fallback: For a bundle without twn_config.json.

    Returns:
        The folder.

    Raises:
        CheckpointError: The bundle cannot be loaded, or the folder not be written.
        ConfigError: The folder is in use, or a setting out of range.
    """
    check_free(Path(folder))
    encoder = Encoder.from_pretrained(bundle, device="cpu", fallback=fallback, merge=False)
    module = TwnModule(encoder, think=think, budget=budget, with_backbone=with_backbone)
    with new_folder(Path(folder)) as writing:
        SentenceTransformer(modules=[module], device="cpu", similarity_fn_name="cosine").save_pretrained(str(writing), create_model_card=False)
        (writing / README).write_text(TEMPLATE.read_text(encoding="utf-8").replace("FOLDER", Path(folder).name), encoding="utf-8")
    return Path(folder)


def _reloaded(bundle: Path, loading: Mapping[str, Any], settings: Mapping[str, Any], learnt: Mapping[str, Tensor]) -> TwnModule:
    module = TwnModule(Encoder.from_pretrained(bundle, device="cpu", **loading), **settings)
    module.model.load_state_dict(learnt, strict=False)
    return module


def _copy_backbone(path: str, folder: Path) -> None:
    """A checkpoint's folder, or the hub's copy of it, unless that is where it lies."""
    if not Path(path).is_dir():
        from huggingface_hub import snapshot_download

        path = snapshot_download(path)
    if Path(path).resolve() != folder.resolve():
        shutil.copytree(path, folder, dirs_exist_ok=True)


def _fields(value: object, prompt: str | None, *, num_frames: int) -> dict[str, object]:
    """An input of sentence-transformers as one of the encoder."""
    if is_message_dict(value) or (isinstance(value, list) and value and is_message_dict(value[0])):
        fields = _of_conversation(value if isinstance(value, list) else [cast("Mapping[str, Any]", value)])
    elif isinstance(value, Mapping) and "array" not in value:
        fields = dict(value)
    else:
        fields = {_modality(value): value}
    made = with_pictures(fields, num_frames=num_frames)
    return made if made.get("instruction") or not prompt else {**made, "instruction": prompt}


def _modality(value: object) -> str:
    try:
        modality = infer_modality(value, supported_modalities=list(MODALITIES))
    except ValueError as error:
        raise DataError(f"An input cannot be understood: {error}") from error
    return str(modality)


def _of_conversation(turns: Sequence[Mapping[str, Any]]) -> dict[str, object]:
    """The system's words are the instruction; the user's turn is the input."""
    roles = [turn["role"] for turn in turns]
    if roles not in (["user"], ["system", "user"]):
        raise DataError(
            f"A conversation has the turns {', '.join(map(str, roles))}: one vector stands for one user's turn, perhaps behind a system's."
        )
    fields: dict[str, list[Any]] = {}
    for turn in turns:
        content = [{"type": "text", "text": turn["content"]}] if isinstance(turn["content"], str) else turn["content"]
        for part in content:
            kind = str(part.get("type"))
            name = "instruction" if turn["role"] == "system" and kind == "text" else kind
            fields.setdefault(name, []).append(part.get(kind))
    if len(fields.get("video", ())) > 1:
        raise DataError("A conversation shows several clips; an input has one at most.")
    words = {name: "\n".join(values) for name, values in fields.items() if name in ("text", "instruction")}
    return {**fields, **words, **({"video": fields["video"][0]} if "video" in fields else {})}
