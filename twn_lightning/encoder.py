"""What a user of a trained model imports: inputs in, vectors out."""

from __future__ import annotations

import dataclasses
import json
import operator
import threading
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias, overload

import torch
from PIL import Image
from torch import Tensor

from twn_lightning.batches import Item
from twn_lightning.checkpoints import BundleDefaults, load_bundle
from twn_lightning.engine.cached import encode_through
from twn_lightning.engine.engine import Limits, encode_adaptively
from twn_lightning.engine.progress import progress_bar
from twn_lightning.engine.table import Table
from twn_lightning.errors import ConfigError, DataError
from twn_lightning.evaluation.encode import evaluating
from twn_lightning.evaluation.store import Shelf, VectorStore
from twn_lightning.evaluation.store_digests import code_digest, folder_digest
from twn_lightning.exact_search import Hits, best_documents
from twn_lightning.inputs import EncoderInput, to_item
from twn_lightning.models.backbones import load_processor
from twn_lightning.models.dual_lora import DualLoRAModel
from twn_lightning.models.gate import threshold_within
from twn_lightning.models.outputs import Decoding

__all__ = ["Encoder", "EncoderInput", "Encoding", "Hits", "Side", "Think"]

Side: TypeAlias = Literal["query", "document"]
Think: TypeAlias = Literal["never", "always", "auto"]

MAX_PROMPT_TOKENS = 8192


@dataclass(frozen=True)
class Encoding:
    """Vectors, and what the model thought to get them. Row i is input i.

    Attributes:
        vectors: Unit rows, float32 on the CPU, ``(N, D)``; NaN for inputs that were skipped.
        discriminative: The vectors before any thought, ``(N, D)``.
        thoughts: The chain of thought of each input; empty where it did not think.
        thinks: Whether it did, bool ``(N,)``.
        num_reasoning_tokens: Tokens written for each input, ``(N,)``.
        gate_probability: That thinking helps, ``(N,)``.
        errors: Row → why it was skipped.
        truncated: Rows whose text was cut to fit.
    """

    vectors: Tensor
    discriminative: Tensor
    thoughts: tuple[str, ...]
    thinks: Tensor
    num_reasoning_tokens: Tensor
    gate_probability: Tensor
    errors: Mapping[int, str] = field(default_factory=dict)
    truncated: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.thoughts)


class Encoder:
    """Embeds text, pictures, clips and mixtures with a trained bundle; thinks first where that helps.

    Calls from several threads run one after the other.

    Args:
        model: A loaded model; it belongs to the encoder from then on.
        decoding: How chains of thought are written; the bundle's own way by default.
        bundle: Where the model came from; a cache needs it.
        cache: Folder for vectors and thoughts, under everything that made them: what is there is not encoded again. None for no cache.
        max_prompt_tokens: The text of a longer prompt is cut at its end, with a warning; a prompt too long without its text is an error.

    Example:
        >>> encoder = Encoder.from_pretrained("runs/mini/5_gate_refit/bundle")
        >>> query = encoder.encode("a red bird")
        >>> documents = encoder.encode([Path("bird.png"), "a blue fish"], side="document")
        >>> encoder.search(query, documents, top_k=1).indices

    Raises:
        ConfigError: A cache is wanted for a model that cannot be named.
    """

    def __init__(
        self,
        model: DualLoRAModel,
        *,
        decoding: Decoding | None = None,
        bundle: str | Path | None = None,
        cache: str | Path | None = None,
        max_prompt_tokens: int = MAX_PROMPT_TOKENS,
    ) -> None:
        self.model = model.eval()
        self.decoding = decoding or model.decoding
        self.bundle = None if bundle is None else Path(bundle)
        self.max_prompt_tokens = max_prompt_tokens
        options = model.processor.options
        if options.max_prompt_tokens is not None:  # the encoder's to mend, not the processor's to refuse
            self.max_prompt_tokens = min(max_prompt_tokens, options.max_prompt_tokens)
            model.backbone.processor = load_processor(model.backbone.path, options=dataclasses.replace(options, max_prompt_tokens=None))
        self._lock = threading.RLock()
        self._provenance: dict[str, str] | None = None
        self._cache = None if cache is None else Path(cache)
        self._shelves: dict[tuple[Think, float | None, Decoding], Shelf] = {}
        if self._cache is not None:
            self.provenance()

    @classmethod
    def from_pretrained(
        cls,
        bundle: str | Path,
        *,
        device: str | torch.device | None = None,
        dtype: str | None = None,
        decoding: Decoding | None = None,
        fallback: BundleDefaults | None = None,
        cache: str | Path | None = None,
        max_prompt_tokens: int = MAX_PROMPT_TOKENS,
        merge: bool = True,
    ) -> Encoder:
        """Loads a bundle and its backbone.

        Args:
            bundle: Folder that a stage wrote.
            device: Where to run; None takes a GPU if there is one.
            dtype: Of the backbone's weights: float32, bfloat16 or float16; None for the bundle's.
            decoding: See `Encoder`.
            fallback: For a folder without twn_config.json.
            cache: See `Encoder`.
            max_prompt_tokens: See `Encoder`.
            merge: Put the reasoning adapter into the backbone's weights: faster, and equal up to rounding. False leaves a model that can be trained
                and saved.

        Raises:
            CheckpointError: The bundle cannot be loaded.
            ConfigError: There is no such device or dtype.
        """
        if dtype not in (None, "float32", "bfloat16", "float16"):
            raise ConfigError(f"dtype is {dtype!r}; choose float32, bfloat16 or float16.")
        try:
            where = torch.device(device if device is not None else "cuda" if torch.cuda.is_available() else "cpu")
        except RuntimeError as error:
            raise ConfigError(f"device is {str(device)!r}; choose cpu, cuda, cuda:1 …, or leave it out.") from error
        model = load_bundle(bundle, fallback=fallback)
        if merge:
            model.merge_for_inference()
        if dtype is not None:
            for name, parameter in model.backbone.model.named_parameters():
                if ".lora_" not in name:  # adapters stay in float32, and rotary frequencies, which are no parameters, too
                    parameter.data = parameter.data.to(getattr(torch, dtype))
        try:
            model = model.to(where)
        except (RuntimeError, AssertionError) as error:  # torch's words for a device that is not there
            raise ConfigError(f"device is {str(where)!r}, which cannot be used here ({error}): choose cpu, or leave it out.") from error
        return cls(model, decoding=decoding, bundle=bundle, cache=cache, max_prompt_tokens=max_prompt_tokens)

    @property
    def dim(self) -> int:
        """D, length of a vector."""
        return self.model.hidden_size

    @overload
    def encode(
        self,
        inputs: EncoderInput | Iterable[EncoderInput],
        *,
        side: Side = "query",
        instruction: str | None = None,
        think: Think = "auto",
        budget: float | None = None,
        batch_size: int | Literal["auto"] = "auto",
        show_progress: bool | None = None,
        on_error: Literal["raise", "skip"] = "raise",
        return_thoughts: Literal[False] = False,
    ) -> Tensor: ...

    @overload
    def encode(
        self,
        inputs: EncoderInput | Iterable[EncoderInput],
        *,
        side: Side = "query",
        instruction: str | None = None,
        think: Think = "auto",
        budget: float | None = None,
        batch_size: int | Literal["auto"] = "auto",
        show_progress: bool | None = None,
        on_error: Literal["raise", "skip"] = "raise",
        return_thoughts: Literal[True],
    ) -> Encoding: ...

    def encode(  # noqa: PLR0913 - all but one by keyword
        self,
        inputs: EncoderInput | Iterable[EncoderInput],
        *,
        side: Side = "query",
        instruction: str | None = None,
        think: Think = "auto",
        budget: float | None = None,
        batch_size: int | Literal["auto"] = "auto",
        show_progress: bool | None = None,
        on_error: Literal["raise", "skip"] = "raise",
        return_thoughts: bool = False,
    ) -> Tensor | Encoding:
        """Unit vectors of the inputs, in their order.

        Batches of similar length are made, read and thought about as suits the device; the vectors do not depend on it.

        Args:
            inputs: Words, files, pictures, mixtures (`EncoderInput`), or several of them in a list or whatever can be gone through.
            side: Whether they are searched with or searched, for the budget: thoughts of queries and of documents differ in number and length.
            instruction: What the vectors are for, of inputs that bring none of their own; None for the bundle's default.
            think: Whether to reason before embedding; "auto" lets the gate decide for each input.
            budget: Reasoning tokens an input, on average, that "auto" should spend: the gate's threshold is then the one that spent this much
                on the validation tasks the bundle was made with. None: the bundle's own threshold. Inputs unlike those tasks' spend other amounts;
                `Encoding.num_reasoning_tokens` tells.
            batch_size: Inputs that run together, at least 1; "auto" looks at their length.
            show_progress: A bar on standard error; None shows it on a terminal, for more than a batch.
            on_error: What an input does that cannot be read: "raise" stops at the first one that is found; "skip" warns once, and leaves NaN in its
                row and the reason in `Encoding.errors`.
            return_thoughts: Gives an `Encoding` instead of the vectors alone.

        Returns:
            Float32 on the CPU, ``(N, D)``, or ``(D,)`` for one input that is not in a sequence; with ``return_thoughts`` an `Encoding`, in which
            one input counts as a sequence of one.

        Raises:
            ConfigError: An argument is out of range, or the bundle knows no threshold for the budget.
            DataError: There is no input, or one is empty or cannot be read.
        """
        if instruction is not None and not isinstance(instruction, str):
            raise ConfigError(f"instruction is {instruction!r}; give a string, or None for the bundle's own.")
        if on_error not in ("raise", "skip"):
            raise ConfigError(f"on_error is {on_error!r}; choose raise or skip.")
        threshold = self.threshold(think=think, budget=budget, side=side)
        limits = self._limits(batch_size)
        is_one = isinstance(inputs, str | bytes | Path | Image.Image | Item | Mapping) or not isinstance(inputs, Iterable)
        sequence: list[EncoderInput] = [inputs] if is_one else list(inputs)  # type: ignore[list-item, arg-type]
        if not sequence:
            raise DataError("There is nothing to encode: the list of inputs is empty.")
        table = Table.empty(len(sequence), width=self.dim, with_generative=think != "never", stops_at_errors=on_error == "raise")
        with ExitStack() as copies:
            items = _opened(sequence, instruction, table, copies)
            with self._lock, progress_bar(len(sequence), shown=show_progress, batch_size=limits.max_rows) as progress:
                progress(len(table.errors))
                self._fill(table, items, think=think, threshold=threshold, limits=limits, progress=progress)
        encoding = _encoding(table)
        _warn(encoding, max_prompt_tokens=self.max_prompt_tokens)
        if return_thoughts:
            return encoding
        return encoding.vectors[0] if is_one else encoding.vectors

    def threshold(self, *, think: Think = "auto", budget: float | None = None, side: Side = "query") -> float:
        """The probability from which an input thinks in such a call of `encode`.

        Raises:
            ConfigError: An argument is out of range, or the bundle knows no threshold for the budget.
        """
        if think not in ("never", "always", "auto"):
            raise ConfigError(f"think is {think!r}; choose never, always or auto.")
        if side not in ("query", "document"):
            raise ConfigError(f"side is {side!r}; choose query or document.")
        gate = self.model.gate
        if budget is None:
            return gate.threshold
        if not isinstance(budget, int | float):
            raise ConfigError(f"budget is {budget!r}; give a number of reasoning tokens.")
        if think != "auto":
            raise ConfigError(f'budget is {budget:g} and think is "{think}": a budget is what the gate is to keep to; leave one of them out.')
        tokens = "query_tokens" if side == "query" else "candidate_tokens"
        return threshold_within(gate.curve, lambda point: point[tokens], budget=budget)

    def provenance(self) -> dict[str, str]:
        """Everything that a vector depends on besides its input, the think mode and the threshold, as names and values.

        Raises:
            ConfigError: The encoder was not made from a bundle.
        """
        if self._provenance is None:
            if self.bundle is None:
                raise ConfigError("This encoder was made of a model in memory, which nothing names: load it with Encoder.from_pretrained(bundle).")
            backbone, hf = Path(self.model.backbone.path), self.model.backbone.model
            self._provenance = {
                "bundle": folder_digest(self.bundle),
                "backbone": folder_digest(backbone) if backbone.is_dir() else f"{backbone} {getattr(hf.config, '_commit_hash', None) or 'main'}",
                "processor": json.dumps(dataclasses.asdict(self.model.processor.options), sort_keys=True),
                "max_prompt_tokens": str(self.max_prompt_tokens),
                "decoding": json.dumps(dataclasses.asdict(self.decoding), sort_keys=True),
                "dtype": str(hf.dtype).removeprefix("torch."),
                "attention": str(hf.config.get_text_config()._attn_implementation),
                "device": self.model.device.type,
                "merged": str(self.model.is_merged),
                "code": code_digest(),
            }
        return dict(self._provenance)

    @staticmethod
    def similarity(queries: Tensor, documents: Tensor) -> Tensor:
        """Cosine similarity of each query with each document, in [-1, 1].

        Args:
            queries: Unit rows, ``(Q, D)`` or ``(D,)``.
            documents: Unit rows, ``(C, D)`` or ``(D,)``.

        Returns:
            ``(Q, C)``.
        """
        return queries.float().reshape(-1, queries.shape[-1]) @ documents.float().reshape(-1, documents.shape[-1]).T

    @staticmethod
    def search(queries: Tensor, documents: Tensor, *, top_k: int = 10) -> Hits:
        """The best documents of each query, by all scores; see `exact_search.best_documents`."""
        return best_documents(queries, documents, top_k=top_k)

    def _limits(self, batch_size: int | Literal["auto"]) -> Limits:
        if batch_size == "auto":
            return Limits.automatic(self.model.device, max_prompt_tokens=self.max_prompt_tokens)
        try:
            rows = operator.index(batch_size)
        except TypeError:
            rows = 0
        if rows < 1:
            raise ConfigError(f"batch_size is {batch_size!r}; it must be a whole number of at least 1, or 'auto'.")
        return Limits.of_rows(rows, max_prompt_tokens=self.max_prompt_tokens)

    def _fill(
        self, table: Table, items: Mapping[int, Item], *, think: Think, threshold: float, limits: Limits, progress: Callable[[int], None]
    ) -> None:
        def encode(chosen: Mapping[int, Item]) -> None:
            with evaluating(self.model):
                encode_adaptively(
                    self.model, chosen, table, think=think, threshold=threshold, decoding=self.decoding, limits=limits, progress=progress
                )

        if self._cache is None:
            encode(items)
            return
        encode_through(self._shelf(self._cache, think, threshold), items, table, encode=encode, progress=progress)

    def _shelf(self, cache: Path, think: Think, threshold: float) -> Shelf:
        """Stays open from call to call: finding out what is in its files takes time, the more the more there are."""
        key = (think, threshold if think == "auto" else None, self.decoding)
        shelf = self._shelves.get(key)
        if shelf is not None and shelf.folder.is_dir():
            shelf.refresh()
            return shelf
        made_by = {**self.provenance(), **({"threshold": repr(threshold)} if think == "auto" else {})}
        self._shelves[key] = VectorStore(cache, made_by, width=self.dim).shelf(think, self.decoding)
        return self._shelves[key]


def _opened(sequence: Sequence[EncoderInput], instruction: str | None, table: Table, copies: ExitStack) -> dict[int, Item]:
    """Items by row; the table gets why the others are none."""
    items: dict[int, Item] = {}
    for row, value in enumerate(sequence):
        try:
            items[row] = to_item(value, copies=copies, instruction=instruction)
        except DataError as error:
            table.fail({row: str(error)})
    return items


def _encoding(table: Table) -> Encoding:
    return Encoding(
        vectors=table.discriminative if table.generative is None else table.generative,
        discriminative=table.discriminative,
        thoughts=tuple(table.texts),
        thinks=table.thought,
        num_reasoning_tokens=table.num_reasoning_tokens,
        gate_probability=table.gate_probability,
        errors=dict(sorted(table.errors.items())),
        truncated=tuple(sorted(table.truncated)),
    )


def _warn(encoding: Encoding, *, max_prompt_tokens: int) -> None:
    if encoding.errors:
        row, reason = next(iter(encoding.errors.items()))
        warnings.warn(f"{len(encoding.errors)} of {len(encoding)} inputs were skipped; input {row}: {reason}", stacklevel=3)
    if encoding.truncated:
        warnings.warn(
            f"The text of {len(encoding.truncated)} of {len(encoding)} inputs was cut to fit into {max_prompt_tokens} tokens (first: input "
            f"{encoding.truncated[0]}): Encoder.from_pretrained(…, max_prompt_tokens=…) sets the limit.",
            stacklevel=3,
        )
