"""A batch that is read in pieces of similar length is the batch that is read at once: rows, order, gradients."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from twn_lightning.batches import Item
from twn_lightning.models.dual_lora import DualLoRAModel
from twn_lightning.models.generation import score_thoughts
from twn_lightning.models.pieces import piece_of, rows_by_length

MakeItems = Callable[[int], list[Item]]
MakeModel = Callable[..., DualLoRAModel]


def gradients(model: DualLoRAModel, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize(
    "settings", [{}, {"interface": "reencode"}, {"embedding": None, "detach": False}, {"num_queries": 0, "interface": "reencode"}]
)
def test_pieces_give_the_rows_and_gradients_of_the_whole(settings: dict[str, object], make_model: MakeModel, make_items: MakeItems) -> None:
    model = make_model(**settings)
    model.set_trainable("embedding", "queries")
    inputs = model.processor.inputs(make_items(7))
    weight = torch.randn(7, model.hidden_size, generator=torch.Generator().manual_seed(0))
    whole = model.embed(model.prefill(inputs))
    expected = gradients(model, (whole.vector * weight).sum())
    for max_tokens in (1, 90, 200):
        num_pieces = len(rows_by_length(inputs, max_tokens=max_tokens))
        assert num_pieces == 7 if max_tokens == 1 else 1 < num_pieces < 7
        pieces = model.embed_prompts(inputs, max_tokens=max_tokens)
        torch.testing.assert_close(pieces.vector, whole.vector, rtol=0, atol=1e-6)
        torch.testing.assert_close(pieces.state, whole.state, rtol=1e-5, atol=1e-5)
        assert whole.prompt_state is not None
        torch.testing.assert_close(pieces.prompt_state, whole.prompt_state, rtol=1e-5, atol=1e-5)
        found = gradients(model, (pieces.vector * weight).sum())
        assert found.keys() == expected.keys()
        for name, gradient in expected.items():
            torch.testing.assert_close(found[name], gradient, rtol=0, atol=1e-5 * max(1.0, float(gradient.abs().max())), msg=name)


def test_no_piece_has_more_tokens_than_allowed_unless_it_is_one_row(tiny_model: DualLoRAModel, make_items: MakeItems) -> None:
    inputs = tiny_model.processor.inputs(make_items(9))
    for max_tokens in (1, 60, 120, 10_000):
        pieces = rows_by_length(inputs, max_tokens=max_tokens)
        assert sorted(torch.cat(pieces).tolist()) == list(range(9))
        for rows in pieces:
            read = piece_of(inputs, rows).attention_mask
            assert len(rows) == 1 or read.numel() <= max_tokens
            assert torch.equal(read.sum(dim=1), inputs.attention_mask[rows].sum(dim=1))
    assert [len(rows) for rows in rows_by_length(inputs, max_tokens=None)] == [9]


def test_pieces_read_less_padding(make_model: MakeModel, make_items: MakeItems) -> None:
    read = []
    for max_tokens in (None, 120):
        model = make_model()
        model.embed_prompts(model.processor.inputs(make_items(10)), max_tokens=max_tokens)
        read.append(model.num_prompt_tokens)
    assert read[1] < 0.8 * read[0]


def test_thoughts_scored_some_tokens_at_a_time_are_those_scored_at_once(tiny_model: DualLoRAModel) -> None:
    thoughts = tiny_model.processor.thoughts(["3 + 4 = 7", "a red dot", "seconds, seconds, seconds"])
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(*thoughts.token_ids.shape, tiny_model.hidden_size, generator=generator)
    weight = torch.randn(thoughts.token_ids[:, 1:].shape, generator=generator)
    results = []
    for num_tokens in (10_000, 5, 1):
        hidden = states.clone().requires_grad_()
        max_scores = num_tokens * len(tiny_model.banned)
        log_probs, correct = score_thoughts(tiny_model.backbone, hidden, thoughts, banned=tiny_model.banned, max_scores=max_scores)
        (log_probs * weight).sum().backward()  # type: ignore[no-untyped-call]
        assert hidden.grad is not None
        results.append((log_probs.detach(), correct, hidden.grad))
    for log_probs, correct, gradient in results[1:]:
        torch.testing.assert_close(log_probs, results[0][0], rtol=1e-5, atol=1e-6)
        assert torch.equal(correct, results[0][1])
        torch.testing.assert_close(gradient, results[0][2], rtol=1e-5, atol=1e-6)


def test_scores_of_all_tokens_are_never_there_together(tiny_model: DualLoRAModel, monkeypatch: pytest.MonkeyPatch) -> None:
    thoughts = tiny_model.processor.thoughts(["3 + 4 = 7"] * 4)
    hidden = torch.randn(*thoughts.token_ids.shape, tiny_model.hidden_size, requires_grad=True)
    sizes: list[int] = []
    whole = type(tiny_model.backbone).logits

    def noted(backbone: object, states: Tensor) -> Tensor:
        logits: Tensor = whole(tiny_model.backbone, states)
        sizes.append(logits.numel())
        return logits

    monkeypatch.setattr(type(tiny_model.backbone), "logits", noted)
    max_scores = 3 * len(tiny_model.banned)
    log_probs, _ = score_thoughts(tiny_model.backbone, hidden, thoughts, banned=tiny_model.banned, max_scores=max_scores)
    forward = len(sizes)
    log_probs.sum().backward()  # type: ignore[no-untyped-call]
    assert len(sizes) == 2 * forward
    assert max(sizes) <= max_scores
