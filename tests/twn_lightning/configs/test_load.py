"""YAML + profile + overrides become one checked RunConfig, and every slip is answered in words."""

from pathlib import Path

import pytest

from experiments.runs import CONFIGS
from twn_lightning.configs.load import config_yaml, flatten, load_config
from twn_lightning.configs.run import RunConfig
from twn_lightning.errors import ConfigError


def load(*overrides: str, config: str = "mini", profile: str | None = "cpu") -> RunConfig:
    return load_config(config, folder=CONFIGS, profile=profile, overrides=overrides)


def test_later_settings_win(tmp_path: Path) -> None:
    (tmp_path / "profiles").mkdir()
    (tmp_path / "one.yaml").write_text("seed: 2\nmodel: {num_queries: 3}\ndecoding: {max_new_tokens: 5}\n")
    (tmp_path / "profiles" / "two.yaml").write_text("model: {num_queries: 4}\ndecoding: {max_new_tokens: 6}\n")
    config = load_config("one", folder=tmp_path, profile="two", overrides=["decoding.max_new_tokens=7"])
    assert (config.seed, config.model.num_queries, config.decoding.max_new_tokens) == (2, 4, 7)


def test_lists_and_mappings_can_be_overridden() -> None:
    config = load(
        "data.weights.DigitSum=2",
        "evaluation.modes=[never, auto]",
        "data.sources=[{options: {path: my.jsonl}, weight: 3}]",
        "stages.gate.optim.betas=[0.5, 0.9]",
    )
    assert config.data.weights["DigitSum"] == 2.0
    assert config.evaluation.modes == ("never", "auto")
    assert (config.data.sources[0].options, config.data.sources[0].weight) == ({"path": "my.jsonl"}, 3.0)
    assert config.stages.gate.optim.betas == (0.5, 0.9)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("sed=3", "Did you mean: 'seed'"),
        ("stages.grpo.group_sz=4", r"stages\.grpo\.group_sz.*Did you mean: 'group_size'"),
        ("stages.grpo.group_size=many", "could not be converted to Integer"),
        ("stages.grpo.group_size=1", "stages.grpo.group_size is 1, but .*choose 2 or more"),
        ("stages.grpo.length_target=99", "choose a target that is not longer"),
        ("model.interface=kb", "expected one of"),
        ("model.gate.threshold=1.5", "compared with a probability"),
        ("stages.gate.fixed_threshold=2", "stages.gate.fixed_threshold is 2.0, but it is compared with a probability"),
        ("stages.grpo.outcome_top_k=0", "choose 1 or more"),
        ("model.adapters=shared", "set model.detach=false, or model.adapters=dual"),
        ("model.pooling=last", "set model.interface=reencode, or model.adapters=shared with model.detach=false"),
        ("model.reasoning.target_modules=[]", "trains nothing"),
        ("evaluation.modes=[nver]", "choose among never, always, auto, oracle"),
        ("data.suite=none", "nothing to train on"),
        ("data.sources.0.kind=x", "a list is written"),
        ("trainer.devices=0", "-1 for all"),
        ("name=a/b", "names a folder"),
        ("model=3", "the command line"),
        ("nonsense", "write key=value"),
        ("seed=[", "cannot be read as YAML"),
    ],
)
def test_a_slip_is_answered_in_words(override: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load(override)


def test_a_stage_two_that_trains_nothing_is_refused() -> None:
    parts = ("cot", "discriminative", "generative", "mixed")
    with pytest.raises(ConfigError, match="would train nothing.*steps=0"):
        load(*(f"stages.cot_sft.{part}_weight=0" for part in parts))
    assert load(*(f"stages.cot_sft.{part}_weight=0" for part in parts[1:])).stages.cot_sft.cot_weight == 1.0


def test_a_shared_adapter_and_the_last_token_can_be_asked_for() -> None:
    assert load("model.adapters=shared", "model.detach=false", "model.pooling=last").model.interface == "kv"
    assert load("model.pooling=last", "model.interface=reencode").model.adapters == "dual"


def test_unknown_files_list_what_is_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Did you mean 'mini'.*Available: .*mini"):
        load(config="mny")
    with pytest.raises(ConfigError, match="no profile 'cpuu'. Did you mean 'cpu'.*zero3"):
        load(profile="cpuu")
    broken = tmp_path / "broken.yaml"
    broken.write_text("a: [")
    with pytest.raises(ConfigError, match="broken.yaml cannot be read as YAML"):
        load(config=str(broken))
    broken.write_text("- a list")
    with pytest.raises(ConfigError, match="holds a list"):
        load(config=str(broken))


def test_a_slip_in_a_file_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("model: {num_querys: 3}")
    with pytest.raises(ConfigError, match=r"model.num_querys.*num_queries.*mine\.yaml"):
        load(config=str(path))


def test_resolved_settings_read_back_equal(tmp_path: Path) -> None:
    config = load("seed=7", "backbone.max_pixels=4096", "data.weights={a: 0.5}")
    path = tmp_path / "resolved.yaml"
    path.write_text(config_yaml(config))
    assert load(config=str(path), profile=None) == config


def test_flatten_gives_dotted_keys() -> None:
    flat = flatten(load("stages.grpo.group_size=4", "data.weights.DigitSum=2"))
    assert flat["stages.grpo.group_size"] == "4"
    assert flat["evaluation.modes"] == '["never", "always", "auto", "oracle"]'
    assert flat["data.weights.DigitSum"] == "2.0"
    assert flat["data.sources"] == "[]"


PAIRS = [
    pytest.param(config.stem, profile, marks=[] if profile is None or config.stem == "mini" else pytest.mark.slow)
    for config in sorted(CONFIGS.glob("*.yaml"))
    for profile in (None, *sorted(path.stem for path in (CONFIGS / "profiles").glob("*.yaml")))
]


@pytest.mark.parametrize(("config", "profile"), PAIRS)
def test_every_shipped_config_loads_with_every_profile(config: str, profile: str | None) -> None:
    assert load(config=config, profile=profile).name


def test_inner_epochs_that_would_be_one_step_are_refused() -> None:
    assert load("stages.grpo.inner_epochs=2", "trainer.accumulate=1").stages.grpo.inner_epochs == 2
    with pytest.raises(ConfigError, match="inner_epochs is 2 and trainer.accumulate is 4, .* set one of them to 1"):
        load("stages.grpo.inner_epochs=2", "trainer.accumulate=4")


@pytest.mark.parametrize("path", [*CONFIGS.rglob("*.yaml")], ids=lambda path: path.name)
def test_every_shipped_yaml_opens_with_its_command(path: Path) -> None:
    assert path.read_text().startswith("# make "), path
