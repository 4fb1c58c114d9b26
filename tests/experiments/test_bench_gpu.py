"""The benchmark of all stages: its formulas against torch's own count, GradCache against one pass, and the way from a command to its page."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from experiments import bench_gpu
from experiments.bench_gpu import Reading, is_out_of_memory, main, measure, page, peak_flops, read
from experiments.bench_steps import VARIANTS, Load, contrast, grad_cache_backward, make_batch, make_step, plain_vectors
from experiments.model_flops import ModelFlops
from experiments.shapes import make_backbone
from twn_lightning.batches import Inputs, Item
from twn_lightning.errors import ConfigError
from twn_lightning.models.adapters import LoraSpec
from twn_lightning.models.backbones import load_backbone
from twn_lightning.models.dual_lora import DualLoRAModel

pytestmark = pytest.mark.slow

SMALL = Load(prompt_tokens=40, thought_tokens=6, group_size=2, picture=64, chunk=2)
ARGUMENTS = ["--device", "cpu", "--shrink", "--dtype", "float32", "--batch-sizes", "2", "--rounds", "1"]
ARGUMENTS += ["--prompt-tokens", "40", "--thought-tokens", "6", "--group-size", "2", "--picture", "64", "--chunk", "1"]


@pytest.fixture(scope="module")
def shrunk_model(tmp_path_factory: pytest.TempPathFactory) -> DualLoRAModel:
    folder = make_backbone(tmp_path_factory.mktemp("shape"), "qwen3-vl-4b", shrink=True)
    spec = LoraSpec(rank=4, alpha=8)
    backbone = load_backbone(folder, attn_implementation="eager")  # of the CPU's sdpa torch counts nothing
    return DualLoRAModel(backbone, reasoning=spec, embedding=spec, num_queries=4)


def counted(run: Callable[[], object]) -> float:
    with FlopCounterMode(display=False) as counter:
        run()
    return float(counter.get_total_flops())


def whole_squares(model: DualLoRAModel, lengths: list[int]) -> float:
    """What torch counts of causal attention and the formulas do not: the half above the diagonal."""
    return 4.0 * ModelFlops.of(model).attention_width * sum(length * (length - 1) / 2 for length in lengths)


def test_the_formula_of_a_prefill_is_what_torch_counts(shrunk_model: DualLoRAModel) -> None:
    model, flops = shrunk_model.eval(), ModelFlops.of(shrunk_model)
    inputs = make_batch(model, 3, SMALL).query
    lengths = inputs.attention_mask.sum(dim=1).tolist()
    assert inputs.image_grid_thw is not None
    expected = flops.see(inputs.image_grid_thw.prod(dim=1).tolist()) + flops.read(lengths, adapter=flops.reasoning_weights)
    measured = counted(lambda: model.prefill(inputs))
    assert measured == pytest.approx(expected + whole_squares(model, lengths), rel=0.001)


@pytest.mark.parametrize("name", ["stage1_kv", "stage1_reencode", "plain", "stage2_kv", "stage3_kv"])
def test_the_formula_of_a_step_is_what_torch_counts(name: str, shrunk_model: DualLoRAModel) -> None:
    """But for the causal halves, which these lengths make a few per cent of."""
    batch = make_batch(shrunk_model, 2, SMALL)
    step = make_step(shrunk_model, VARIANTS[name], SMALL, autocast=None)
    expected = step(batch).flops
    assert counted(lambda: step(batch)) == pytest.approx(expected, rel=0.1)


def test_a_step_of_stage_4_takes_what_its_parts_do(shrunk_model: DualLoRAModel) -> None:
    """Written token by token, whose passes torch counts one by one."""
    batch = make_batch(shrunk_model, 2, SMALL)
    step = make_step(shrunk_model, VARIANTS["stage4_kv"], SMALL, autocast=None)
    found = step(batch)
    assert counted(lambda: step(batch)) == pytest.approx(found.flops, rel=0.15)
    assert found.tokens == 2 * 2 * 40 + 2 * 2 * 6
    assert set(shrunk_model.peft.peft_config) == {"reasoning", "embedding", "reference"}


def test_grad_cache_gives_the_gradient_of_one_pass(make_model: Callable[..., DualLoRAModel], make_items: Callable[[int], list[Item]]) -> None:
    model = make_model().train()
    model.set_trainable("embedding")
    sides = [model.processor.inputs(make_items(7)), model.processor.inputs(make_items(8)[1:])]

    def gradients(backward: Callable[[], object]) -> dict[str, torch.Tensor]:
        model.zero_grad()
        backward()
        return {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}

    def embed(inputs: Inputs) -> torch.Tensor:
        return plain_vectors(model, inputs)

    whole = gradients(lambda: torch.autograd.backward(contrast([embed(side) for side in sides])))
    chunked = gradients(lambda: grad_cache_backward(embed, sides, contrast, chunk=3))
    assert chunked.keys() == whole.keys() != set()
    for name, gradient in whole.items():
        torch.testing.assert_close(chunked[name], gradient, rtol=1e-4, atol=1e-4 * float(gradient.abs().max()))


def test_a_batch_that_does_not_fit_is_recorded_and_larger_ones_are_not_tried(shrunk_model: DualLoRAModel) -> None:
    readings = measure(shrunk_model, ["stage1_kv"], [1, 2], Load(prompt_tokens=2**44, picture=0), rounds=1, dtype="float32")
    assert next(readings).status == "out of memory"  # before the others are tried
    assert [reading.status for reading in readings] == ["not tried"]


def test_another_error_is_not_taken_for_it() -> None:
    def broken() -> Callable[[], object]:
        raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match="shapes"):
        read("plain", 1, broken, torch.device("cpu"), rounds=1, peak=None)  # type: ignore[arg-type]
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))


def test_peaks_are_told_by_the_devices_name() -> None:
    names = ("NVIDIA H100 80GB HBM3", "NVIDIA H100 PCIe", "NVIDIA H200", "NVIDIA A100-SXM4-80GB", "a processor, 2 threads")
    assert [peak_flops(name) for name in names] == [989e12, 756e12, 989e12, 312e12, None]


def test_mfu_is_operations_by_seconds_and_peak() -> None:
    reading = Reading("plain", 4, "measured", seconds=(0.4, 0.5, 9.0), tokens=1000, flops=5e12, mfu=5e12 / 0.5 / 100e12)
    assert reading.tokens_per_second == 2000.0
    assert reading.mfu == pytest.approx(0.1)


def test_the_command_writes_a_page_and_the_record_it_is_made_of(tmp_path: Path) -> None:
    main([*ARGUMENTS, "--out", str(tmp_path)])
    record = json.loads((tmp_path / "bench_gpu.json").read_text())
    written = (tmp_path / "bench_gpu.md").read_text()
    assert [(row["variant"], row["status"]) for row in record["readings"]] == [(name, "measured") for name in VARIANTS]
    assert all(row["mfu"] is None and row["peak_gib"] > 0 and len(row["seconds"]) == 1 for row in record["readings"])
    assert re.fullmatch(r"[0-9a-f]{40}(-dirty)?|unknown", record["commit"])
    assert record["versions"]["torch"] in written
    assert "shrunk: the numbers mean nothing" in written
    assert written == page(record)


def test_gradient_checkpointing_and_bfloat16_run_too(tmp_path: Path) -> None:
    given = ["--dtype", "bfloat16", "--gradient-checkpointing", "--variants", "stage2_kv,plain_grad_cache", "--out", str(tmp_path)]
    main([*ARGUMENTS, *given])
    record = json.loads((tmp_path / "bench_gpu.json").read_text())
    assert [row["status"] for row in record["readings"]] == ["measured"] * 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--variants", "stage5"], "no variant 'stage5'; choose among stage1_kv"),
        (["--batch-sizes", "1,x"], "lists counts of pairs"),
        (["--shape", "qwen9"], "no architecture 'qwen9'"),
    ],
)
def test_a_wrong_argument_is_answered_in_words(arguments: list[str], words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=words):
        main([*ARGUMENTS, "--out", str(tmp_path), *arguments])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_how_to_go_on() -> None:
    with pytest.raises(ConfigError, match="choose --device cpu --shrink"):
        main([])
    assert bench_gpu.NAME == "bench_gpu"
