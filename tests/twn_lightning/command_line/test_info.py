"""`twn info` on the command line: what a bundle is, and what is wrong with one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from twn_lightning.checkpoints import load_bundle

Twn = Callable[..., tuple[int, str, str]]


def test_a_bundle_is_described(twn: Twn, tiny_bundle: Path) -> None:
    code, out, _ = twn("info", tiny_bundle, "--json")
    facts = json.loads(out)
    assert (code, facts["problems"]) == (0, [])
    model = load_bundle(tiny_bundle)
    assert facts["parameters"] == model.parameter_report()
    assert facts["queries"] == {"number": 2, "width": 32}
    assert (facts["reasoning"]["rank"], facts["reasoning"]["alpha"]) == (4, 8)
    assert (facts["gate"]["width"], facts["gate"]["hidden_size"], facts["gate"]["threshold"]) == (32, 128, 0.5)
    assert facts["gate"]["curve"] == model.gate.curve
    assert facts["provenance"] == {"stage": "3_gate", "run": "tiny"}
    code, out, _ = twn("info", tiny_bundle)
    assert code == 0
    for words in (
        "interface   kv; dual adapters, gradients stop between them",
        "embedding   LoRA of rank 4, alpha 8, on ",
        "queries     2 of width 32",
        "thinks from 0.5 on",
        f"{facts['parameters']['ratio']:.2%}",
        "run                     tiny",
    ):
        assert words in out
    own = next(line for line in out.splitlines() if "◀ threshold" in line)
    assert own.split()[:5] == ["4.00", "3.00", "50%", "0.5", "55.00"]
    assert out.count("◀") == 1


def _remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def _foreign_gate(folder: Path) -> None:
    torch.save({"linear.weight": torch.zeros(3, 5)}, folder / "gate_mlp.pt")


def _other_width(folder: Path) -> None:
    torch.save({"queries": torch.zeros(2, 48)}, folder / "queries.pt")


def _other_backbone(folder: Path) -> None:
    config = json.loads((folder / "twn_config.json").read_text())
    config["backbone"]["path"] = "/nowhere/Qwen3-VL"
    (folder / "twn_config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("harm", "words", "still_known"),
    [
        (_remove("queries.pt"), "queries.pt", "LoRA of rank 4"),
        (_remove("twn_config.json"), "has no twn_config.json, so that backbone, interface, threshold and prompts are not known", "2 of width 32"),
        (lambda folder: (folder / "twn_config.json").write_text("{"), "is not JSON", "2 of width 32"),
        (lambda folder: shutil.rmtree(folder / "reasoning"), "no folder of a PEFT adapter", "2 of width 32"),
        (_foreign_gate, "must hold weight and bias of two layers", "interface   kv"),
        (_other_width, "48 wide", "2 of width 48"),
        (_other_backbone, "/nowhere/Qwen3-VL", "2 of width 32"),
    ],
)
def test_what_is_wrong_is_named_beside_what_is_known(
    twn: Twn, tiny_bundle: Path, tmp_path: Path, harm: Callable[[Path], object], words: str, still_known: str
) -> None:
    shutil.copytree(tiny_bundle, tmp_path / "bundle")
    harm(tmp_path / "bundle")
    code, out, _ = twn("info", tmp_path / "bundle")
    assert code == 1
    problem = next(line for line in out.splitlines() if line.startswith("Problem: "))
    assert words in problem
    assert still_known in out
    code, out, _ = twn("info", tmp_path / "bundle", "--json")
    facts = json.loads(out)
    assert code == 1
    assert words in facts["problems"][0]
    assert facts["parameters"] is None


def test_a_folder_that_is_not_there_is_one_line(twn: Twn, tmp_path: Path) -> None:
    code, out, said = twn("info", tmp_path / "none")
    assert (code, out) == (1, "")
    assert said.startswith(f"twn: There is no bundle at {tmp_path / 'none'}")


def test_an_index_is_told_from_a_bundle(twn: Twn, searched_index: Path) -> None:
    code, out, said = twn("info", searched_index)
    assert (code, out) == (1, "")
    assert f"{searched_index} is an index, not a bundle" in said
