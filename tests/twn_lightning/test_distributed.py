from __future__ import annotations

import torch

from twn_lightning import distributed


def test_one_process_is_its_own_world() -> None:
    rows = torch.ones(2, 3, requires_grad=True)
    assert (distributed.rank(), distributed.world_size()) == (0, 1)
    assert distributed.gather_with_grad(rows) is rows
    assert not distributed.gather(rows).requires_grad
    assert distributed.gather_objects({"a": 1}) == [{"a": 1}]
    assert distributed.sum_over_ranks(torch.tensor(3.0)).item() == 3.0
    assert distributed.first_row(4) == 0
    assert distributed.from_rank_zero("here") == "here"
    assert distributed.max_over_ranks(3) == 3
    distributed.barrier()
    with distributed.rank_zero_first() as is_first:
        assert is_first


def test_trainable_parameters_are_copied_and_counted_whole() -> None:
    layer = torch.nn.Linear(2, 3)
    layer.bias.requires_grad_(False)
    copies = distributed.full_parameters(layer)
    assert copies.keys() == {"weight"}
    assert torch.equal(copies["weight"], layer.weight)
    assert copies["weight"].data_ptr() != layer.weight.data_ptr()
    assert not distributed.is_sharded(layer)
    assert distributed.num_elements(layer.weight) == 6
