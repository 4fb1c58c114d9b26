"""Settings of the four stages. Every default is this project's own choice, made on the mini suite."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from twn_lightning.configs.checks import above, at_least, between
from twn_lightning.errors import ConfigError


@dataclass(frozen=True)
class OptimConfig:
    """AdamW with warm-up and a schedule."""

    learning_rate: float = 1e-3
    """Peak learning rate; 1e-3 suits LoRA on the tiny backbone, 1e-4 to 2e-4 a backbone of billions."""
    weight_decay: float = 0.0
    """Decoupled weight decay."""
    warmup_steps: int = 20
    """Optimiser steps of linear warm-up."""
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    """Course of the learning rate after the warm-up: constant, or down to 0 at the stage's last step."""
    betas: tuple[float, float] = (0.9, 0.98)
    """AdamW's decay rates of the first and second moment."""
    optimizer: Literal["adamw", "adamw_8bit"] = "adamw"
    """adamw: torch's, fused where it can be; adamw_8bit: moments in 8 bits (bitsandbytes, a GPU: the extra "gpu")."""

    def __post_init__(self) -> None:
        above("optim.learning_rate", self.learning_rate, 0.0, "nothing is learnt at 0")
        at_least("optim.weight_decay", self.weight_decay, 0.0, "a negative decay lets weights grow")
        at_least("optim.warmup_steps", self.warmup_steps, 0, "it counts optimiser steps")


@dataclass(frozen=True)
class ContrastiveConfig:
    """Stage 1: embedding adapter and queries."""

    steps: int = 400
    """Optimiser steps; 0 leaves the stage out: the one before it hands on what it has."""
    batch_size: int = 64
    """Pairs a step and rank."""
    temperature: float = 0.02
    """Divides the cosine scores (as in E5-V and VLM2Vec)."""
    max_negatives: int = 0
    """Hard negatives taken of each pair."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """Optimiser."""

    def __post_init__(self) -> None:
        _common("stages.contrastive", self.steps, self.batch_size)
        at_least("stages.contrastive.batch_size", self.batch_size, 2, "the other rows of the batch are the negatives")
        above("stages.contrastive.temperature", self.temperature, 0.0, "it divides the scores")


@dataclass(frozen=True)
class CotSftConfig:
    """Stage 2: reasoning adapter by next-token cross-entropy; embedding adapter and queries by InfoNCE, with the detach between."""

    steps: int = 700
    """Optimiser steps; 0 leaves the stage out: the one before it hands on what it has."""
    batch_size: int = 64
    """Pairs a step and rank."""
    temperature: float = 0.02
    """Divides the cosine scores."""
    max_negatives: int = 0
    """Hard negatives taken of each pair."""
    cot_weight: float = 1.0
    """Weight of the cross-entropy on the reference thoughts."""
    discriminative_weight: float = 1.0
    """Weight of InfoNCE between discriminative query and discriminative positive."""
    generative_weight: float = 1.0
    """Weight of InfoNCE between generative query and generative positive."""
    mixed_weight: float = 1.0
    """Weight of InfoNCE between a generative and a discriminative side (both ways): a thinking query must find a silent candidate."""
    cot_every: int = 1
    """Steps from one on which the thoughts' cross-entropy is computed to the next. On the others the backbone runs without an autograd graph
    (interface kv), which is cheaper: a backbone that reasons well already needs less teaching than its readers. Not under DeepSpeed."""
    reasoning_learning_rate: float | None = None
    """Peak learning rate of the reasoning adapter; None: that of optim. A backbone that can describe what it sees needs little to be
    taught to reason, and a high rate makes it forget answers that the training pairs leave out."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """Optimiser."""

    def __post_init__(self) -> None:
        _common("stages.cot_sft", self.steps, self.batch_size)
        at_least("stages.cot_sft.batch_size", self.batch_size, 2, "the other rows of the batch are the negatives")
        above("stages.cot_sft.temperature", self.temperature, 0.0, "it divides the scores")
        at_least("stages.cot_sft.cot_every", self.cot_every, 1, "it is a distance in steps (1 is every step)")
        if self.reasoning_learning_rate is not None:
            above("stages.cot_sft.reasoning_learning_rate", self.reasoning_learning_rate, 0.0, "nothing is learnt at 0")
        for name in ("cot_weight", "discriminative_weight", "generative_weight", "mixed_weight"):
            at_least(f"stages.cot_sft.{name}", getattr(self, name), 0.0, "it weights a loss")
        if self.cot_weight == self.discriminative_weight == self.generative_weight == self.mixed_weight == 0.0:
            raise ConfigError(
                "stages.cot_sft has the weight 0 for each of its losses and would train nothing: "
                "give one of cot_weight, discriminative_weight, generative_weight and mixed_weight a value above 0, or leave it out with steps=0."
            )


@dataclass(frozen=True)
class GateConfig:
    """Stage 3: the gate learns from the gain that the model's own thoughts brought."""

    steps: int = 300
    """Optimiser steps; 0 leaves the stage out: the one before it hands on what it has."""
    batch_size: int = 128
    """Examples a step and rank."""
    labels: Literal["pairs", "tasks"] = "pairs"
    """What is labelled. pairs: pairs of the sources, each positive among the others of its batch; tasks: the validation tasks' queries and the
    candidates they are to find, each among the task's own candidates. Without a suite there are no validation tasks, and pairs of the training split
    are labelled."""
    folds: int = 5
    """Parts into which the labelled inputs' subjects are dealt. The threshold is chosen on all of them: each part is judged by a gate that has
    learned from the others."""
    split: Literal["train", "validation"] = "train"
    """With labels=pairs, the pairs that are labelled: those of the training split, or of the validation split (what the model does on pairs it was
    not trained on)."""
    num_pairs: int = 1536
    """With labels=pairs, how many are labelled, dealt over the sources by their weights (evenly with split=validation)."""
    label_batch_size: int = 64
    """With labels=pairs, pairs that compete when a label is made: u is the log-softmax score of the positive among them."""
    temperature: float = 0.02
    """Divides the cosine scores in the label's softmax."""
    margin: float = 0.0
    """Label 1 (think) if the gain u_gen - u_disc is above this many nats."""
    dead_zone: float = 0.05
    """Examples whose gain lies closer than this to 0, in nats, are left out."""
    balanced: bool = True
    """Draw half of each batch from each class, and weight both equally in the loss."""
    dropout: float = 0.0
    """Share of what the gate reads that is hidden from it while it trains: few labelled inputs are soon known by heart."""
    sides: Literal["query", "positive", "both"] = "both"
    """Which side of a pair gives examples."""
    tolerance: float = 0.25
    """Points of mean validation score that the threshold may give up for fewer reasoning tokens; not used where there are no validation tasks."""
    fixed_threshold: float | None = None
    """The probability from which an input thinks, whatever the validation score says (0.5: think if a gain is likelier than not, with margin 0,
    dead_zone 0 and balanced false the MMEmb-R1-like rule); None: chosen by tolerance."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """Optimiser."""

    def __post_init__(self) -> None:
        _common("stages.gate", self.steps, self.batch_size)
        at_least("stages.gate.folds", self.folds, 2, "a part is judged by a gate that has learned from the others")
        at_least("stages.gate.num_pairs", self.num_pairs, 2, "labels need pairs")
        at_least("stages.gate.label_batch_size", self.label_batch_size, 2, "a positive is ranked among the others of its batch")
        above("stages.gate.temperature", self.temperature, 0.0, "it divides the scores")
        at_least("stages.gate.tolerance", self.tolerance, 0.0, "it is a difference of scores")
        at_least("stages.gate.dead_zone", self.dead_zone, 0.0, "it is a distance in nats")
        between("stages.gate.dropout", self.dropout, 0.0, 0.99, "it is a probability")
        if self.fixed_threshold is not None:
            between("stages.gate.fixed_threshold", self.fixed_threshold, 0.0, 1.0, "it is compared with a probability (0 always thinks, 1 never)")


@dataclass(frozen=True)
class RewardWeights:
    """Weight of each part of a thought's reward; a part of weight 0 is not computed."""

    format: float = 0.5
    """The thought is closed and not empty."""
    retrieval: float = 1.0
    """Cosine to the positive minus the soft maximum of the cosines to the other targets."""
    rank: float = 0.5
    """Reciprocal rank of the positive."""
    gain: float = 0.5
    """Gain of the generative over the discriminative embedding in nats, cut to gain_maximum."""
    length: float = 0.1
    """Shorter thoughts are better, other things equal."""
    group_margin: float = 0.0
    """UME-R1-like: share of the own positive's thoughts among the nearest, times the margin to the others'. The positives think too, which takes
    as long again as the queries' thoughts."""
    outcome: float = 0.0
    """Embed-RL-like: the margin to a soft maximum (temperature 0.5) of the other targets, 0 unless the positive is among the first outcome_top_k."""


@dataclass(frozen=True)
class GrpoConfig:
    """Stage 4: the reasoning adapter is rewarded for thoughts whose embedding retrieves."""

    steps: int = 120
    """Optimiser steps; 0 leaves the stage out: the one before it hands on what it has."""
    batch_size: int = 16
    """Prompts a step and rank; each gets group_size thoughts."""
    group_size: int = 8
    """G, thoughts sampled for each prompt."""
    inner_epochs: int = 1
    """Optimiser steps on one set of thoughts."""
    max_negatives: int = 0
    """Hard negatives taken of each pair."""
    max_new_tokens: int = 24
    """Longest sampled thought."""
    sampling_temperature: float = 1.0
    """Divides the logits when thoughts are sampled."""
    top_p: float = 1.0
    """Nucleus mass when thoughts are sampled."""
    loss_type: Literal["grpo", "dr_grpo", "dapo", "bnpo"] = "dapo"
    """How token losses are averaged."""
    scale_by_std: bool = True
    """Divide a group's advantages by their standard deviation."""
    clip_low: float = 0.2
    """The ratio is clipped below at 1 - clip_low."""
    clip_high: float = 0.2
    """The ratio is clipped above at 1 + clip_high."""
    kl_weight: float = 0.02
    """Weight of the k3 KL to the frozen reasoning adapter of stage 2."""
    score_temperature: float = 0.02
    """Divides the cosine scores in the rewards that use a softmax."""
    gain_maximum: float = 2.0
    """The gain reward is cut to plus or minus this many nats."""
    length_target: int = 12
    """Thoughts up to this many tokens get the full length reward."""
    outcome_top_k: int = 1
    """The outcome reward is 0 unless the positive is among this many first targets."""
    rewards: RewardWeights = field(default_factory=RewardWeights)
    """Weights of the reward's parts."""
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(learning_rate=1e-4, warmup_steps=5, schedule="constant"))
    """Optimiser."""

    def __post_init__(self) -> None:
        _common("stages.grpo", self.steps, self.batch_size)
        at_least("stages.grpo.group_size", self.group_size, 2, "advantages compare the thoughts of one prompt")
        at_least("stages.grpo.inner_epochs", self.inner_epochs, 1, "each set of thoughts is trained on at least once")
        above("stages.grpo.sampling_temperature", self.sampling_temperature, 0.0, "greedy thoughts of a group would all be equal")
        between("stages.grpo.clip_low", self.clip_low, 0.0, 1.0, "a ratio cannot fall below 0")
        at_least("stages.grpo.kl_weight", self.kl_weight, 0.0, "it weights a penalty")
        at_least("stages.grpo.outcome_top_k", self.outcome_top_k, 1, "it counts targets")
        if self.length_target > self.max_new_tokens:
            raise ConfigError(
                f"stages.grpo.length_target is {self.length_target}, but thoughts end at stages.grpo.max_new_tokens = {self.max_new_tokens}: "
                "choose a target that is not longer."
            )


@dataclass(frozen=True)
class StagesConfig:
    """The four stages, in their order."""

    contrastive: ContrastiveConfig = field(default_factory=ContrastiveConfig)
    """Stage 1."""
    cot_sft: CotSftConfig = field(default_factory=CotSftConfig)
    """Stage 2."""
    gate: GateConfig = field(default_factory=GateConfig)
    """Stage 3, and the refit after stage 4."""
    grpo: GrpoConfig = field(default_factory=GrpoConfig)
    """Stage 4."""


def _common(name: str, steps: int, batch_size: int) -> None:
    at_least(f"{name}.steps", steps, 0, "it counts optimiser steps (0 leaves the stage out)")
    at_least(f"{name}.batch_size", batch_size, 1, "a step needs examples")
