"""The model's passes: gradients go where they should, the cache equals a full pass, and batches equal single rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor
from transformers.models.qwen3_vl.modeling_qwen3_vl import apply_rotary_pos_emb

from twn_lightning.batches import Inputs, Item, Thoughts
from twn_lightning.errors import ConfigError
from twn_lightning.models.adapters import use_adapter
from twn_lightning.models.backbones import load_backbone
from twn_lightning.models.backbones.base import ProcessorOptions
from twn_lightning.models.dual_lora import DualLoRAModel
from twn_lightning.models.outputs import Decoding
from twn_lightning.models.prefix import Prefix, cache_tensors

MakeModel = Callable[..., DualLoRAModel]
MakeItems = Callable[[int], list[Item]]

COTS = ("the flag shows a red dot", "3 + 4 = 7", "so it is Japan, and its capital is Tokyo", "a")


def batch(model: DualLoRAModel, items: list[Item]) -> tuple[Inputs, Thoughts]:
    """Prompts of the items and thoughts of four different lengths."""
    return model.processor.inputs(items), model.processor.thoughts([COTS[index % len(COTS)] for index in range(len(items))])


def keys_and_values(prefix: Prefix) -> list[tuple[Tensor, Tensor]]:
    assert prefix.cache is not None
    return cache_tensors(prefix.cache)


def with_gradient(model: DualLoRAModel) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.grad is not None and parameter.grad.abs().sum() > 0}


@contextmanager
def counted_columns(model: DualLoRAModel) -> Iterator[list[int]]:
    """Columns of every pass through the decoder while it lasts."""
    columns: list[int] = []
    language_model = model.backbone.model.get_submodule("model.language_model")
    handle = language_model.register_forward_pre_hook(
        lambda _module, _args, kwargs: columns.append(kwargs["inputs_embeds"].shape[1]), with_kwargs=True
    )
    try:
        yield columns
    finally:
        handle.remove()


# Gradients


@pytest.mark.parametrize("interface", ["kv", "reencode"])
def test_contrastive_gradient_reaches_queries_and_embedding_adapter_only(make_model: MakeModel, make_items: MakeItems, interface: str) -> None:
    model = make_model(interface=interface).train()
    model.set_trainable("reasoning", "embedding", "queries", "gate")
    supervised = model.supervise(*batch(model, make_items(5)))
    vectors = [model.embed(supervised.prefix).vector, model.embed(supervised.prefix.without_thoughts()).vector]
    torch.autograd.backward(torch.cat(vectors).sum())
    reached = with_gradient(model)
    assert reached >= set(model.named_part_parameters("queries"))
    assert reached <= set(model.named_part_parameters("queries", "embedding"))
    assert len(reached) > 0.8 * len(model.named_part_parameters("embedding"))


def test_sft_gradient_reaches_the_reasoning_adapter_only(tiny_model: DualLoRAModel, make_items: MakeItems) -> None:
    tiny_model.set_trainable("reasoning", "embedding", "queries", "gate")
    supervised = tiny_model.supervise(*batch(tiny_model, make_items(5)))
    tiny_model.embed(supervised.prefix)
    torch.autograd.backward(-supervised.log_probs.sum())
    assert with_gradient(tiny_model) == set(tiny_model.named_part_parameters("reasoning"))


def test_gate_gradient_stays_in_the_gate(tiny_model: DualLoRAModel, make_items: MakeItems) -> None:
    tiny_model.set_trainable("reasoning", "embedding", "queries", "gate")
    embedding = tiny_model.embed(tiny_model.prefill(tiny_model.processor.inputs(make_items(3))))
    torch.autograd.backward(tiny_model.gate(tiny_model.gate.reading(embedding)).sum())
    assert with_gradient(tiny_model) <= set(tiny_model.named_part_parameters("gate"))


def test_without_detach_the_contrastive_gradient_reaches_the_reasoning_adapter(make_model: MakeModel, make_items: MakeItems) -> None:
    model = make_model(detach=False)
    model.set_trainable("reasoning", "queries")
    torch.autograd.backward(model.embed(model.supervise(*batch(model, make_items(3))).prefix).vector.sum())
    assert len(with_gradient(model) & set(model.named_part_parameters("reasoning"))) > 20


def kept_of_the_sequence(model: DualLoRAModel, prefix: Callable[[], Prefix]) -> tuple[list[torch.Size], list[torch.Size]]:
    """Shapes autograd keeps as long as the whole batch's sequence, parameters apart: while reading the prompt, and while embedding."""
    parameters = {parameter.data_ptr() for parameter in model.parameters()}
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        read = prefix()
        num_first = len(kept)
        model.embed(read)
    long = [tensor.numel() // tensor.shape[-1] >= read.attention_mask.numel() if tensor.dim() else False for tensor in kept]
    shapes = [(number < num_first, tensor.shape) for number, tensor in enumerate(kept) if long[number] and tensor.data_ptr() not in parameters]
    return [shape for first, shape in shapes if first], [shape for first, shape in shapes if not first]


def test_contrastive_training_keeps_no_activations_of_the_sequence(make_model: MakeModel, make_items: MakeItems) -> None:
    model = make_model().train()
    model.set_trainable("embedding", "queries")
    inputs = model.processor.inputs(make_items(5))
    reading, embedding = kept_of_the_sequence(model, lambda: model.prefill(inputs))
    assert reading == []
    # The queries' attention keeps the keys and values it reads, (rows, heads, columns, head size), and nothing else has that length.
    assert {shape[1:] for shape in embedding} <= {(heads, inputs.input_ids.shape[1] + model.num_queries, 16) for heads in (2, 4)}
    assert len(embedding) <= 2 * 3

    reencoding = make_model(interface="reencode").train()
    reencoding.set_trainable("embedding", "queries")
    assert len(kept_of_the_sequence(reencoding, lambda: reencoding.prefill(inputs))[1]) > 20 * 3  # what a plain pass keeps


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_gradient_checkpointing_changes_no_loss_and_no_gradient(make_model: MakeModel, make_items: MakeItems, dropout: float) -> None:
    results = []
    for checkpointing in (False, True):
        model = make_model(dropout=dropout).train()
        model.set_trainable("reasoning", "embedding", "queries")
        if checkpointing:
            model.enable_gradient_checkpointing()
        torch.manual_seed(1)
        supervised = model.supervise(*batch(model, make_items(5)))
        loss = -supervised.log_probs.sum()
        if dropout == 0.0:  # else the cache is noisy in one case and not in the other
            loss = loss + model.embed(supervised.prefix).vector.square().sum(dim=0).max()
        torch.autograd.backward(loss)
        results.append((loss.detach(), {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}))
    (loss, gradients), (loss_again, gradients_again) = results
    assert torch.allclose(loss, loss_again, rtol=1e-5)
    assert gradients.keys() == gradients_again.keys()
    for name, gradient in gradients.items():
        assert torch.allclose(gradient, gradients_again[name], rtol=1e-3, atol=1e-4 * float(gradient.abs().max())), name


def test_a_recompute_has_the_dropout_of_its_forward(make_model: MakeModel, make_items: MakeItems) -> None:
    """The policy's log-probabilities are computed without dropout, in a model that trains with it."""
    gradients = []
    for checkpointing in (False, True):
        model = make_model(dropout=0.3).train()
        model.set_trainable("reasoning")
        if checkpointing:
            model.enable_gradient_checkpointing()
        torch.autograd.backward(model.thought_log_probs(*batch(model, make_items(3))).sum())
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None})
    kept, recomputed = gradients
    assert kept.keys() == recomputed.keys()
    assert all(torch.allclose(kept[name], recomputed[name], rtol=1e-3, atol=1e-4 * float(kept[name].abs().max())) for name in kept)


def test_gradient_checkpointing_without_detach_is_refused(make_model: MakeModel) -> None:
    with pytest.raises(ConfigError, match="detach=false"):
        make_model(detach=False).enable_gradient_checkpointing()


# Equal results on different ways


def full_embedding(model: DualLoRAModel, inputs: Inputs) -> Tensor:
    """The slow reference of the kv interface: both adapters in one pass over the whole sequence, each on its own columns."""
    backbone = model.backbone
    prompt, queries = backbone.prompt(inputs), model.queries.expand(len(inputs), -1, -1)
    columns = inputs.input_ids.shape[1]
    mask = torch.cat([inputs.attention_mask, torch.ones(len(inputs), model.num_queries, dtype=torch.long)], dim=1)
    hidden = torch.cat([prompt.embeddings, queries], dim=1)
    steps = prompt.next_position[:, None] + torch.arange(model.num_queries)
    position_ids = torch.cat([prompt.position_ids, steps.expand(3, -1, -1)], dim=2)
    text = backbone.model.get_submodule("model.language_model")
    rotary = text.get_submodule("rotary_emb")(hidden, position_ids)
    allowed = torch.ones(mask.shape[1], mask.shape[1], dtype=torch.bool).tril() & mask[:, None, None, :].bool()
    for number, layer in enumerate(text.get_submodule("layers").children()):
        outputs = {}
        for adapter in ("reasoning", "embedding"):
            with use_adapter(model, adapter):
                outputs[adapter] = _projections(layer, hidden)
        mixed = [
            torch.cat([one[:, :columns], other[:, columns:]], dim=1) for one, other in zip(outputs["reasoning"], outputs["embedding"], strict=True)
        ]
        attended = _attention(layer, mixed, rotary, allowed)
        halves = []
        for adapter, part in (("reasoning", slice(0, columns)), ("embedding", slice(columns, None))):
            with use_adapter(model, adapter):
                state = hidden[:, part] + layer.get_submodule("self_attn.o_proj")(attended[:, part])
                halves.append(state + layer.get_submodule("mlp")(layer.get_submodule("post_attention_layernorm")(state)))
        hidden = torch.cat(halves, dim=1)
        if number < len(prompt.deepstack) and prompt.visual_mask is not None:
            hidden = hidden.clone()
            hidden[:, :columns][prompt.visual_mask] += prompt.deepstack[number]
    return text.get_submodule("norm")(hidden)[:, columns:].mean(dim=1)  # type: ignore[no-any-return]


def _projections(layer: torch.nn.Module, hidden: Tensor) -> list[Tensor]:
    attention, normed = layer.get_submodule("self_attn"), layer.get_submodule("input_layernorm")(hidden)
    return [attention.get_submodule(name)(normed) for name in ("q_proj", "k_proj", "v_proj")]


def _attention(layer: torch.nn.Module, projected: list[Tensor], rotary: tuple[Tensor, Tensor], allowed: Tensor) -> Tensor:
    attention = layer.get_submodule("self_attn")
    query, key, value = (tensor.reshape(*tensor.shape[:2], -1, 16) for tensor in projected)
    query, key = attention.get_submodule("q_norm")(query).transpose(1, 2), attention.get_submodule("k_norm")(key).transpose(1, 2)
    query, key = apply_rotary_pos_emb(query, key, *rotary)
    key, value = key.repeat_interleave(2, dim=1), value.transpose(1, 2).repeat_interleave(2, dim=1)
    scores = (query @ key.transpose(2, 3) / 4.0).masked_fill(~allowed, -1e9)
    output: Tensor = (scores.softmax(dim=-1) @ value).transpose(1, 2).flatten(2)
    return output


@torch.no_grad()
def test_cached_embedding_equals_a_full_pass(tiny_model: DualLoRAModel, make_items: MakeItems) -> None:
    inputs = tiny_model.processor.inputs(make_items(10))
    assert (tiny_model.embed(tiny_model.prefill(inputs)).state - full_embedding(tiny_model, inputs)).abs().max() <= 1e-5


@torch.no_grad()
def test_cached_logits_equal_a_full_pass(tiny_model: DualLoRAModel, make_items: MakeItems) -> None:
    inputs, thoughts = batch(tiny_model, make_items(10))
    full = tiny_model.supervise(inputs, thoughts).log_probs  # one pass over prompt and thought
    cached = tiny_model.thought_log_probs(inputs, thoughts)  # the thought behind the prompt's cache
    assert (cached - full).abs().max() <= 1e-5


@torch.no_grad()
@pytest.mark.parametrize("interface", ["kv", "reencode"])
def test_left_and_right_padding_agree(make_model: MakeModel, make_items: MakeItems, interface: str, tiny_backbone_path: str) -> None:
    left, items = make_model(interface=interface), make_items(10)
    options = ProcessorOptions(num_frames=4, max_thought_tokens=48, padding_side="right")
    right_inputs = load_backbone(tiny_backbone_path, options=options).processor.inputs(items)
    inputs, thoughts = batch(left, items)
    assert not torch.equal(inputs.attention_mask, right_inputs.attention_mask)
    for one, other in (
        (left.prefill(inputs), left.prefill(right_inputs)),
        (left.supervise(inputs, thoughts).prefix, left.supervise(right_inputs, thoughts).prefix),
    ):
        assert (left.embed(one).vector - left.embed(other).vector).abs().max() <= 1e-5
        assert torch.equal(one.next_position, other.next_position)
    written, written_right = (left.think(left.prefill(each), Decoding(max_new_tokens=12)) for each in (inputs, right_inputs))
    assert torch.equal(written.thoughts.token_ids, written_right.thoughts.token_ids)


@torch.no_grad()
@pytest.mark.parametrize("interface", ["kv", "reencode"])
def test_a_batch_of_every_modality_equals_its_rows_alone(make_model: MakeModel, make_items: MakeItems, interface: str) -> None:
    model, items = make_model(interface=interface), make_items(8)
    inputs, thoughts = batch(model, items)
    together = model.supervise(inputs, thoughts)
    rollout = model.think(model.prefill(inputs), Decoding(max_new_tokens=12))
    for row, item in enumerate(items):
        single_inputs, single_thoughts = model.processor.inputs([item]), model.processor.thoughts([COTS[row % len(COTS)]])
        alone, width = model.supervise(single_inputs, single_thoughts), single_thoughts.token_ids.shape[1]
        assert (together.log_probs[row, : width - 1] - alone.log_probs[0]).abs().max() <= 2e-5
        for one, other in ((together.prefix, alone.prefix), (together.prefix.without_thoughts(), alone.prefix.without_thoughts())):
            assert (model.embed(one).vector[row] - model.embed(other).vector[0]).abs().max() <= 1e-5
        written = model.think(model.prefill(single_inputs), Decoding(max_new_tokens=12)).thoughts
        assert written.token_ids[0].tolist() == rollout.thoughts.token_ids[row, : written.token_ids.shape[1]].tolist()


@torch.no_grad()
def test_supervise_leaves_the_cache_of_prefill_and_extend(tiny_model: DualLoRAModel, make_items: MakeItems) -> None:
    inputs, thoughts = batch(tiny_model, make_items(5))
    stepwise, at_once = tiny_model.extend(tiny_model.prefill(inputs), thoughts), tiny_model.supervise(inputs, thoughts).prefix
    assert_same_prefix(stepwise, at_once)
    assert_same_prefix(tiny_model.prefill(inputs), at_once.without_thoughts())
    assert_same_prefix(tiny_model.prefill(inputs), stepwise.without_thoughts())


def assert_same_prefix(one: Prefix, other: Prefix) -> None:
    assert torch.equal(one.attention_mask, other.attention_mask)
    assert torch.equal(one.next_position, other.next_position)
    tokens = one.attention_mask[:, None, :, None]
    for layer, again in zip(keys_and_values(one), keys_and_values(other), strict=True):
        for tensor, same in zip(layer, again, strict=True):
            assert ((tensor - same) * tokens).abs().max() <= 1e-4


@torch.no_grad()
def test_embedding_leaves_the_cache_as_it_was(tiny_model: DualLoRAModel, make_items: MakeItems) -> None:
    prefix = tiny_model.prefill(tiny_model.processor.inputs(make_items(5)))
    before = [(keys.clone(), values.clone()) for keys, values in keys_and_values(prefix)]
    first = tiny_model.embed(prefix).vector
    tiny_model.think(prefix, Decoding(max_new_tokens=3))
    for layer, copies in zip(keys_and_values(prefix), before, strict=True):
        assert all(torch.equal(tensor, copy) for tensor, copy in zip(layer, copies, strict=True))
    assert torch.equal(tiny_model.embed(prefix).vector, first)


@torch.no_grad()
def test_selected_and_repeated_rows_of_a_prefix_are_those_rows(tiny_model: DualLoRAModel, make_items: MakeItems) -> None:
    inputs, thoughts = batch(tiny_model, make_items(5))
    prefix = tiny_model.supervise(inputs, thoughts).prefix
    vectors = tiny_model.embed(prefix).vector
    rows = torch.tensor([4, 1, 1])
    assert torch.allclose(tiny_model.embed(prefix.select(rows)).vector, vectors[rows], atol=1e-6)
    assert torch.allclose(
        tiny_model.embed(prefix.without_thoughts().repeat(2)).vector,
        tiny_model.embed(prefix.without_thoughts()).vector.repeat_interleave(2, 0),
        atol=1e-6,
    )


@pytest.mark.parametrize("checkpointing", [False, True])
def test_thoughts_of_one_prompt_share_its_reading(
    make_model: MakeModel, make_items: MakeItems, monkeypatch: pytest.MonkeyPatch, checkpointing: bool
) -> None:
    model, group = make_model().train(), 3
    model.set_trainable("reasoning")
    if checkpointing:
        model.enable_gradient_checkpointing()
    inputs, repeated = (model.processor.inputs(items) for items in (make_items(4), [item for item in make_items(4) for _ in range(group)]))
    thoughts = model.processor.thoughts([COTS[index % len(COTS)] for index in range(4 * group)])
    results = []
    for prompts, recomputed_rows in ((inputs, 5), (repeated, 12)):
        monkeypatch.setattr("twn_lightning.models.dual_lora._RECOMPUTED_ROWS", recomputed_rows)
        model.num_prompt_tokens = 0
        model.zero_grad()
        log_probs = model.thought_log_probs(prompts, thoughts)
        torch.autograd.backward((log_probs * torch.linspace(-1, 1, log_probs.numel()).reshape(log_probs.shape)).sum())
        results.append((log_probs.detach(), {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}))
        assert model.num_prompt_tokens == (repeated if checkpointing else prompts).input_ids.numel()
    (shared, gradients), (alone, gradients_alone) = results
    assert (shared - alone).abs().max() <= 2e-5
    assert gradients.keys() == gradients_alone.keys() == model.named_part_parameters("reasoning").keys()
    for name, gradient in gradients.items():
        assert torch.allclose(gradient, gradients_alone[name], rtol=1e-3, atol=1e-4 * float(gradient.abs().max())), name


@torch.no_grad()
def test_reencoding_reads_a_prompt_with_the_reasoning_adapter_only_to_think(make_model: MakeModel, make_items: MakeItems) -> None:
    model = make_model(interface="reencode")
    inputs, thoughts = batch(model, make_items(5))
    prefix = model.prefill(inputs)
    vectors = model.embed(prefix).vector
    model.embed(model.extend(prefix, thoughts))
    assert (model.num_prompt_tokens, prefix.cache) == (0, None)
    rollout = model.think(prefix.repeat(2), Decoding(max_new_tokens=3))
    assert model.num_prompt_tokens == 2 * inputs.input_ids.numel()
    assert rollout.prefix.cache is None
    rows = torch.tensor([4, 1, 1])
    assert torch.allclose(model.embed(prefix.select(rows)).vector, vectors[rows], atol=1e-6)
    taken = model.processor.inputs([make_items(5)[row] for row in rows])
    assert torch.allclose(model.embed(model.prefill(taken)).vector, vectors[rows], atol=1e-6)


# Encoding, parts


@pytest.mark.parametrize("think", ["never", "always", "auto"])
def test_discriminative_gate_and_generative_share_one_prefill(tiny_model: DualLoRAModel, make_items: MakeItems, think: str) -> None:
    inputs = tiny_model.processor.inputs(make_items(6))
    with counted_columns(tiny_model) as columns:
        tiny_model.encode(inputs, think=think, decoding=Decoding(max_new_tokens=5))  # type: ignore[arg-type]
    assert [width for width in columns if width > tiny_model.num_queries] == [inputs.input_ids.shape[1]]
    assert tiny_model.num_prompt_tokens == inputs.input_ids.numel()


def test_auto_thinks_where_the_gate_says_so(tiny_model: DualLoRAModel, make_items: MakeItems) -> None:
    inputs, decoding = tiny_model.processor.inputs(make_items(10)), Decoding(max_new_tokens=8)
    never, always = (tiny_model.encode(inputs, think=think, decoding=decoding) for think in ("never", "always"))
    tiny_model.gate.threshold = float(never.gate_probability.median())
    auto = tiny_model.encode(inputs, think="auto", decoding=decoding)
    assert torch.equal(auto.thinks, never.gate_probability >= tiny_model.gate.threshold)
    assert 0 < int(auto.thinks.sum()) < 10
    assert torch.equal(never.vector, never.discriminative)
    assert never.num_reasoning_tokens.tolist() == [0] * 10
    assert torch.allclose(auto.vector, torch.where(auto.thinks[:, None], always.generative, never.discriminative), atol=1e-5)
    assert torch.equal(auto.num_reasoning_tokens, always.num_reasoning_tokens * auto.thinks)
    assert auto.thoughts is not None
    assert len(auto.thoughts) == int(auto.thinks.sum())
    assert torch.allclose(auto.vector.norm(dim=1), torch.ones(10))


def test_set_trainable_is_exact_and_names_its_parts(tiny_model: DualLoRAModel) -> None:
    tiny_model.set_trainable("queries", "gate")
    trainable = {name for name, parameter in tiny_model.named_parameters() if parameter.requires_grad}
    assert trainable == {"query_table.weight", "gate.mlp.0.weight", "gate.mlp.0.bias", "gate.mlp.2.weight", "gate.mlp.2.bias"}
    with pytest.raises(ConfigError, match="'gates'"):
        tiny_model.set_trainable("gates")  # type: ignore[arg-type]


def test_the_reference_keeps_the_policy_of_its_making(tiny_model: DualLoRAModel, make_items: MakeItems) -> None:
    inputs, thoughts = batch(tiny_model, make_items(4))
    tiny_model.set_trainable("reasoning")
    before = tiny_model.thought_log_probs(inputs, thoughts).detach()
    tiny_model.add_reference()
    trainable = {name for name, parameter in tiny_model.named_parameters() if parameter.requires_grad}
    assert trainable == set(tiny_model.named_part_parameters("reasoning"))
    with torch.no_grad():
        for parameter in tiny_model.named_part_parameters("reasoning").values():
            parameter.add_(0.05)
    assert torch.equal(tiny_model.thought_log_probs(inputs, thoughts, adapter="reference"), before)
    assert not torch.allclose(tiny_model.thought_log_probs(inputs, thoughts), before)
    tiny_model.drop_reference()
    assert not any("reference" in name for name, _ in tiny_model.named_parameters())


def test_the_parameter_report_counts_each_part(tiny_model: DualLoRAModel) -> None:
    tiny_model.set_trainable("queries")
    report = tiny_model.parameter_report()
    assert report["queries"] == report["trainable"] == 2 * 32
    assert (
        report["reasoning"]
        == report["embedding"]
        == sum(4 * (a + b) for a, b in ((32, 64), (32, 32), (32, 32), (64, 32), (32, 48), (32, 48), (48, 32))) * 3
    )
    assert report["ratio"] == pytest.approx(report["added"] / report["backbone"])


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"num_queries": 0}, "num_queries is 0"), ({"interface": "cache"}, "kv or reencode"), ({"gate_threshold": 1.5}, "probability")],
)
def test_settings_out_of_range_are_refused(make_model: MakeModel, settings: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        make_model(**settings)


def test_a_backbone_serves_one_model(tiny_model: DualLoRAModel) -> None:
    spec = tiny_model.adapters["reasoning"]
    with pytest.raises(ConfigError, match="carries adapters already"):
        DualLoRAModel(tiny_model.backbone, reasoning=spec, embedding=spec, num_queries=1)
