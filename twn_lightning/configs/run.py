"""`RunConfig`: everything that one run is made from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from twn_lightning.configs.checks import above, at_least, between, one_of
from twn_lightning.configs.model import BackboneConfig, DecodingConfig, ModelConfig
from twn_lightning.configs.stages import StagesConfig
from twn_lightning.errors import ConfigError

STAGES = ("contrastive", "cot_sft", "gate", "grpo")
MODES = ("never", "always", "auto", "oracle")


@dataclass(frozen=True)
class SourceConfig:
    """One further data source, such as the user's own file."""

    kind: str = "jsonl"
    """A key of `datamodules.sources.SOURCES`."""
    options: dict[str, Any] = field(default_factory=dict)
    """Options of this kind, e.g. {path: mine.jsonl}; checked by the source itself."""
    weight: float = 1.0
    """Share of batches relative to the other sources."""
    stages: tuple[str, ...] = ()
    """Stages that train on it, among contrastive, cot_sft, gate and grpo; empty for all."""

    def __post_init__(self) -> None:
        at_least("data.sources.weight", self.weight, 0.0, "it is a relative share of batches")
        one_of("data.sources.stages", self.stages, STAGES)

    def is_for(self, stage: str) -> bool:
        """Whether a stage trains on it."""
        return not self.stages or stage in self.stages


@dataclass(frozen=True)
class DataConfig:
    """What is trained and evaluated on."""

    suite: Literal["mini", "mmeb_v2", "none"] = "mini"
    """mini: the embedded suite of real pictures, videos and pages, with pairs to train on; mmeb_v2: the 78 test tasks of MMEB-V2, under data.root;
    none: only what data.sources names."""
    root: str = ""
    """With suite=mmeb_v2, the folder that holds its data sets and media; python -m experiments.check_data says what is missing in it. The
    recipes look for their training data in it too."""
    tasks: tuple[str, ...] = ()
    """Tasks of the suite to train and evaluate on; empty for all. Of MMEB-V2 also groups of them: image, video, visdoc, IMG_CLS, …"""
    num_pairs: int = 6000
    """Training pairs of each task of the suite; each draws its subject and its pictures anew."""
    weights: dict[str, float] = field(default_factory=dict)
    """Share of batches of a suite's task relative to the others, by name; 1 where none is given."""
    sources: list[SourceConfig] = field(default_factory=list)
    """Further sources, such as the user's own files, mixed in."""
    validation_batches: int = 4
    """Batches of the embedded suite's validation pairs on which the loss of stages 1 and 2 is reported at their end; 0 for none."""

    def __post_init__(self) -> None:
        for name, weight in self.weights.items():
            at_least(f"data.weights.{name}", weight, 0.0, "it is a relative share of batches")
        at_least("data.validation_batches", self.validation_batches, 0, "it counts batches")
        if self.suite == "mmeb_v2" and not self.root:
            raise ConfigError("data.suite is mmeb_v2, but data.root does not say where it lies: set data.root=FOLDER.")
        if self.suite == "none" and not self.sources:
            raise ConfigError(
                "data.suite is none and data.sources is empty, so there is nothing to train on: "
                "set data.suite=mini, or name a file as in data.sources=[{options: {path: mine.jsonl}}]."
            )


@dataclass(frozen=True)
class EvaluationConfig:
    """How retrieval is measured."""

    modes: tuple[str, ...] = MODES
    """Think modes in the report: never, always, auto (the gate), oracle (the better of never and always for each query; needs labels)."""
    think_sides: Literal["both", "query", "candidate"] = "both"
    """Which side may think."""
    profile: Literal["trained", "vlm2vec", "qwen"] = "trained"
    """How the inputs of MMEB-V2 are shown. trained: as in training (settings of the backbone), the task's words on both sides; vlm2vec and qwen: the
    two ways in which published scores were made (datamodules/mmeb/profiles.py)."""
    instructions: str = ""
    """A YAML or JSON file with the instructions of MMEB-V2's tasks in place of ours, such as those with which published scores were made: task →
    text, or task → {query: text, candidate: text}."""
    thought_writer: Literal["own", "vllm"] = "own"
    """Who writes the thoughts. own: the model itself; vllm: vLLM with the model's reasoning adapter, on a GPU, in an evaluation of one process."""
    vllm_memory: float = 0.5
    """With thought_writer=vllm: share of the GPU's memory that vLLM takes, 0 to 1; the rest is for the model that reads."""
    vllm_devices: int = 1
    """With thought_writer=vllm: GPUs over which vLLM spreads its weights; the first is the model's too."""
    batch_size: int = 128
    """Inputs a forward, at most."""
    max_batch_tokens: int | None = None
    """Prompt tokens a forward, padding included, at most (a single longer prompt goes alone); None for no limit but batch_size."""
    max_queries: int | None = None
    """Queries of each test task; None for all."""
    validation_queries: int = 48
    """Queries of each validation task during training, and for the gate's threshold where its labels are pairs (with stages.gate.labels=tasks all are
    taken)."""

    def __post_init__(self) -> None:
        one_of("evaluation.modes", self.modes, MODES)
        at_least("evaluation.batch_size", self.batch_size, 1, "a forward needs inputs")
        above("evaluation.vllm_memory", self.vllm_memory, 0.0, "it is a share of the GPU's memory")
        between("evaluation.vllm_memory", self.vllm_memory, 0.0, 1.0, "it is a share of the GPU's memory")
        at_least("evaluation.vllm_devices", self.vllm_devices, 1, "it counts GPUs")
        if self.max_batch_tokens is not None:
            at_least("evaluation.max_batch_tokens", self.max_batch_tokens, 1, "a forward needs tokens")
        at_least("evaluation.validation_queries", self.validation_queries, 1, "validation needs queries")


@dataclass(frozen=True)
class TrainerConfig:
    """How Lightning runs."""

    accelerator: Literal["cpu", "gpu", "mps", "auto"] = "cpu"
    """Where the model runs."""
    devices: int = 1
    """Devices a node; -1 for all."""
    num_nodes: int = 1
    """Machines."""
    strategy: str = "auto"
    """Lightning's strategy: auto, ddp, deepspeed_stage_2, deepspeed_stage_3, …"""
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    """Arithmetic of the forward, in training, labelling and evaluation; losses and scores are float32 in any case."""
    accumulate: int = 1
    """Batches an optimiser step (each is contrasted in itself)."""
    max_prefill_tokens: int | None = None
    """Prompt tokens that the frozen backbone reads at once where no gradient runs through it, padding included; a larger batch is read in pieces of
    similar length, to the same result with less memory. None reads a batch at once."""
    clip: float = 1.0
    """Largest gradient norm; 0 for no clipping."""
    num_workers: int = 0
    """Processes that load data; the order of training does not depend on it."""
    num_threads: int | None = None
    """Threads of torch on the CPU; None leaves it to torch."""
    progress_bar: bool = True
    """Show a progress bar."""
    log_every: int = 10
    """Optimiser steps between two logged values."""

    def __post_init__(self) -> None:
        at_least("trainer.accumulate", self.accumulate, 1, "an optimiser step needs a batch")
        if self.max_prefill_tokens is not None:
            at_least("trainer.max_prefill_tokens", self.max_prefill_tokens, 1, "a pass needs tokens")
        at_least("trainer.clip", self.clip, 0.0, "it is a norm (0 does not clip)")
        at_least("trainer.num_workers", self.num_workers, 0, "it counts processes")
        at_least("trainer.log_every", self.log_every, 1, "it counts steps")
        if self.devices == 0 or self.devices < -1:
            raise ConfigError(f"trainer.devices is {self.devices}: choose a number of devices, or -1 for all.")


@dataclass(frozen=True)
class TrackingConfig:
    """MLflow."""

    enabled: bool = True
    """Record the run in MLflow."""
    uri: str = ""
    """A server (http://…) or sqlite:///file; empty for mlflow.db in the output folder."""
    experiment: str = "twn-lightning"
    """MLflow experiment."""


@dataclass(frozen=True)
class CallbacksConfig:
    """What happens beside the training steps."""

    evaluate_every: int = 0
    """Steps between two evaluations on validation tasks during a stage; 0 evaluates at each stage's end only."""
    evaluate_tasks: tuple[str, ...] = ()
    """With suite=mmeb_v2, tasks or groups of which evaluation.validation_queries queries each are evaluated during training; empty for none. They are
    test tasks: watch them, but choose nothing by them."""
    evaluate_modes: tuple[str, ...] = ("never", "always")
    """Think modes of these evaluations (stage 1: never alone)."""
    checkpoint_every: int = 50
    """Steps between two saves of last.ckpt (with one process it is also saved when a stage is interrupted)."""
    keep_best: int = 1
    """How many checkpoints with the best validation score (mean of all tasks in the last of evaluate_modes; stage 1: never) are kept besides the
    last; needs evaluate_every, and not with suite=mmeb_v2, whose tasks are test tasks."""
    rollout_samples_every: int = 50
    """Steps between two tables of written thoughts; 0 for none."""
    num_rollout_samples: int = 4
    """Prompts shown in each table."""
    throughput_every: int = 20
    """Steps between two throughput readings; 0 for none."""

    def __post_init__(self) -> None:
        one_of("callbacks.evaluate_modes", self.evaluate_modes, MODES)
        at_least("callbacks.checkpoint_every", self.checkpoint_every, 1, "it counts optimiser steps")
        for name in ("evaluate_every", "keep_best", "rollout_samples_every", "num_rollout_samples", "throughput_every"):
            at_least(f"callbacks.{name}", getattr(self, name), 0, "it is a count")


@dataclass(frozen=True)
class RunConfig:
    """One run, fully resolved."""

    name: str = "mini"
    """Name of the run and of its folder."""
    seed: int = 1
    """Seed of everything random."""
    output_dir: str = "runs"
    """Folder that holds the runs."""
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    """The frozen multimodal LLM."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """Adapters, queries, gate."""
    decoding: DecodingConfig = field(default_factory=DecodingConfig)
    """How thoughts are written."""
    data: DataConfig = field(default_factory=DataConfig)
    """Sources and tasks."""
    stages: StagesConfig = field(default_factory=StagesConfig)
    """The four stages."""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    """Evaluation on test tasks."""
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    """Lightning's trainer."""
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    """MLflow."""
    callbacks: CallbacksConfig = field(default_factory=CallbacksConfig)
    """Callbacks."""

    def __post_init__(self) -> None:
        if not self.name or "/" in self.name or self.name.startswith("."):
            raise ConfigError(f"name is {self.name!r}, but it names a folder in {self.output_dir}: choose letters, digits, - and _.")
        at_least("seed", self.seed, 0, "generators take no negative seed")
        epochs = self.stages.grpo.inner_epochs
        if epochs > 1 and self.trainer.accumulate > 1:
            raise ConfigError(
                f"stages.grpo.inner_epochs is {epochs} and trainer.accumulate is {self.trainer.accumulate}, but batches that are accumulated become "
                "one step, so that their thoughts would be learned from once all the same: set one of them to 1."
            )
