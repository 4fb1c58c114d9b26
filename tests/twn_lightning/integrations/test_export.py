"""A folder for plain transformers, read by the code in its README."""

from __future__ import annotations

import importlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from tests.support.shapes import make_family
from twn_lightning.checkpoints import load_bundle, save_bundle
from twn_lightning.encoder import Encoder
from twn_lightning.errors import ConfigError
from twn_lightning.integrations.export import export_transformers
from twn_lightning.models.adapters import PROJECTIONS, LoraSpec
from twn_lightning.models.backbones import load_backbone
from twn_lightning.models.backbones.base import ProcessorOptions
from twn_lightning.models.dual_lora import DualLoRAModel
from twn_lightning.models.outputs import Decoding

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]
DECODING = Decoding(max_new_tokens=8)
QUESTION = {"text": "which country", "instruction": "Find the flag."}

ALONE = """
import json, runpy, sys
kept = runpy.run_path(sys.argv[1])  # declares what a torchvision of another build lacks, without this package
torchvision = kept["ensure_torchvision"]()
sys.modules.update(twn_lightning=None, peft=None)
{code}
from PIL import Image
pictures = [Image.open(path).convert("RGB") for path in sys.argv[2:]]
cases = [{{"text": "a red dot"}}, {{"text": "which country", "instruction": "Find the flag.", "images": pictures}}]
vectors = [embed(**case, think=think).tolist() for case in cases for think in (False, True)]
print(json.dumps([vectors, [gate_probability(**case) for case in cases]]))
"""


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("pictures")
    paths = []
    for seed, size in enumerate([(40, 56, 3), (32, 32, 3)]):
        paths.append(folder / f"{seed}.png")
        Image.fromarray(np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)).save(paths[-1])
    return paths


def code_of(folder: Path) -> str:
    return "\n".join(re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL))


def expected(encoder: Encoder, pictures: list[Path]) -> tuple[torch.Tensor, torch.Tensor]:
    """Vectors of two inputs, each without and with a thought, and their gate's probabilities."""
    inputs = ["a red dot", {**QUESTION, "image": pictures}]
    quiet, loud = (encoder.encode(inputs, think=think, return_thoughts=True) for think in ("never", "always"))  # type: ignore[call-overload]
    return torch.stack([quiet.vectors, loud.vectors], dim=1).flatten(0, 1), quiet.gate_probability


def check_code(folder: Path, encoder: Encoder, pictures: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {}
    exec(code_of(folder), names)
    cases: list[dict[str, Any]] = [{"text": "a red dot"}, {**QUESTION, "images": [Image.open(path).convert("RGB") for path in pictures]}]
    vectors, probabilities = expected(encoder, pictures)
    found = torch.stack([names["embed"](**case, think=think) for case in cases for think in (False, True)])
    assert (found - vectors).abs().max() <= 1e-4
    assert torch.tensor([names["gate_probability"](**case) for case in cases]).sub(probabilities).abs().max() <= 1e-4


def test_the_readmes_code_gives_the_encoders_vectors_where_neither_this_package_nor_peft_can_be_imported(
    tiny_bundle: Path, pictures: list[Path], tmp_path: Path
) -> None:
    folder = export_transformers(tiny_bundle, tmp_path / "plain", decoding=DECODING)
    code = code_of(folder)
    assert sum(bool(line.strip()) for line in code.split("gate =")[0].splitlines()) <= 30
    arguments = [str(ROOT / "twn_lightning" / "torchvision_compat.py"), *map(str, pictures)]
    done = subprocess.run([sys.executable, "-c", ALONE.format(code=code), *arguments], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found, found_probabilities = json.loads(done.stdout.splitlines()[-1])
    vectors, probabilities = expected(Encoder.from_pretrained(tiny_bundle, device="cpu", decoding=DECODING), pictures)
    assert (torch.tensor(found) - vectors).abs().max() <= 1e-4
    assert (torch.tensor(found_probabilities) - probabilities).abs().max() <= 1e-4
    assert (vectors[0] - vectors[1]).abs().max() > 1e-2  # a thought shows


VARIANTS: dict[str, dict[str, Any]] = {
    "kv": {},
    "reencode": {"interface": "reencode"},
    "one adapter, last token": {"embedding": None, "detach": False, "num_queries": 0},
    "one adapter, queries": {"embedding": None, "detach": False},
    "reencode, last token, system": {"interface": "reencode", "num_queries": 0, "options": ProcessorOptions(layout="system")},
    "bare, the gate sees both": {"gate_reads": "both", "options": ProcessorOptions(layout="bare", default_instruction="Say what it is.")},
    "small pictures, the gate sees the answer": {"gate_reads": "embedding", "options": ProcessorOptions(min_pixels=16**2, max_pixels=32**2)},
}


def make_bundle(
    folder: Path, backbone_path: Path, *, options: ProcessorOptions | None = None, targets: tuple[str, ...] = PROJECTIONS, **settings: Any
) -> Path:
    spec = LoraSpec(rank=4, alpha=8, target_modules=targets)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        backbone = load_backbone(backbone_path, options=options)
        model = DualLoRAModel(backbone, reasoning=spec, **{"embedding": spec, "num_queries": 2, **settings})
        for name, parameter in model.named_parameters():
            if ".lora_B." in name:
                torch.nn.init.normal_(parameter, std=0.1)
    return save_bundle(model, folder / "bundle", provenance={}, backbone_path=backbone_path)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_interface_pooling_and_layout_has_its_code(
    variant: str, tiny_backbone_path: Path, pictures: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = make_bundle(tmp_path, tiny_backbone_path, **VARIANTS[variant])
    folder = export_transformers(bundle, tmp_path / "plain", decoding=DECODING)
    assert (folder / "embedding").is_dir() == ("one adapter" not in variant)
    check_code(folder, Encoder.from_pretrained(bundle, device="cpu", decoding=DECODING), pictures, monkeypatch)


@pytest.mark.parametrize("family", ["qwen3_vl_moe", "qwen2_5_vl", "qwen2_vl"])
def test_every_family_can_be_exported(
    family: str, tiny_backbone_path: Path, pictures: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = make_family(tmp_path, family, tokenizer_from=tiny_backbone_path)
    bundle = make_bundle(tmp_path, backbone, targets=PROJECTIONS[:4] if family == "qwen3_vl_moe" else PROJECTIONS)
    folder = export_transformers(bundle, tmp_path / "plain", decoding=DECODING)
    check_code(folder, Encoder.from_pretrained(bundle, device="cpu", decoding=DECODING), pictures, monkeypatch)


def test_the_layers_that_answer_bring_neither_a_vision_tower_nor_a_table_of_tokens(tiny_bundle: Path, tmp_path: Path) -> None:
    folder = export_transformers(tiny_bundle, tmp_path / "plain", dtype="bfloat16", decoding=DECODING)
    whole, layers = (load_file(str(folder / part / "model.safetensors")) for part in ("reasoning", "embedding"))
    assert {tensor.dtype for tensor in (*whole.values(), *layers.values())} == {torch.bfloat16}
    assert any("visual" in name for name in whole)
    assert layers.pop("embed_tokens.weight").shape == (2, 32)
    assert all(name.startswith(("layers.", "norm.")) for name in layers)


def test_a_folder_in_use_is_left_alone(tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years")
    with pytest.raises(ConfigError, match="mine is there already: choose another folder"):
        export_transformers(tiny_bundle, tmp_path / "mine")
    assert [path.name for path in tmp_path.rglob("*")] == ["mine", "thesis.txt"]


def test_a_chat_template_that_numbers_pictures_is_refused(tiny_bundle: Path, tiny_backbone_path: Path, tmp_path: Path) -> None:
    counting = tmp_path / "counting"
    shutil.copytree(tiny_backbone_path, counting)
    template = counting / "chat_template.jinja"
    template.write_text(template.read_text().replace("<|vision_start|><|image_pad|>", "{{ loop.index }}: <|vision_start|><|image_pad|>"))
    bundle = save_bundle(load_bundle(tiny_bundle, backbone=load_backbone(counting)), tmp_path / "bundle", provenance={}, backbone_path=counting)
    with pytest.raises(ConfigError, match="does not put instruction, pictures and text one after the other"):
        export_transformers(bundle, tmp_path / "plain")
    assert not (tmp_path / "plain").exists()


def test_sampled_thoughts_are_refused(tiny_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="exported thoughts are greedy"):
        export_transformers(tiny_bundle, tmp_path / "plain", decoding=Decoding(temperature=0.7))


@pytest.mark.parametrize(("module", "package"), [("mteb", "mteb"), ("sentence_transformers", "sentence-transformers")])
def test_a_missing_package_is_named_with_the_way_to_get_it(module: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [module, *(name for name in sys.modules if name.startswith(f"{module}."))]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, f"twn_lightning.integrations.{module}", raising=False)
    with pytest.raises(ConfigError, match=rf"needs the package {package}.*pip install 'twn-lightning\[{package}\]'"):
        importlib.import_module(f"twn_lightning.integrations.{module}")
