"""python -m experiments.bench    (make bench)

What the encoder, training steps and ranking cost, each against what it replaces, on the same weights and inputs in turn. Needs a finished run (or
``--bundle FOLDER``); about half an hour on two cores, two minutes with ``--quick``. Writes docs/benchmarks.md, docs/benchmarks.json and
docs/benchmarks_scaling.png; with ``--quick`` or ``--only`` into runs/bench.

    python -m experiments.bench --only never                  one part
    python -m experiments.bench --where-time-goes never       where the time of a part goes
    python -m experiments.bench --check                       whether the page is what the numbers in the JSON give
    python -m experiments.bench --device cuda --shape qwen3-vl-4b    a true shape with random weights, on a GPU
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.bench.cases import Cases, Result, measured
from experiments.bench.page import HEADINGS, make_page
from experiments.bench.sizes import MEDIUM, sizes
from experiments.bench.timing import Spread
from experiments.command_line import new_parser, prepare_process, require_finished, run_command, settings
from experiments.runs import write_atomically
from twn_lightning.configs.run import RunConfig
from twn_lightning.errors import ConfigError, DataError

if TYPE_CHECKING:
    from experiments.bench.subjects import World

log = logging.getLogger(__name__)

DOCS = Path(__file__).parents[2] / "docs"
ELSEWHERE = Path("runs") / "bench"
UNFINISHED = "unfinished"
"""Folder below, with what has been measured while there is more to do."""
PARTS = tuple(HEADINGS)


def main(arguments: Sequence[str]) -> None:
    """Check the arguments without torch, then measure and write.

    Raises:
        TwnError: Something the user can mend; with ``--check`` also a page that the JSON does not give.
    """
    parsed = _parser().parse_intermixed_args(arguments)
    name = "benchmarks_gpu" if parsed.device == "cuda" else "benchmarks"
    is_whole = not (parsed.quick or parsed.only)
    folder = Path(parsed.out) if parsed.out else DOCS if is_whole or parsed.check else ELSEWHERE
    if parsed.check:
        check(folder, name)
        return
    of_run = argparse.Namespace(config=None, profile=None, run=parsed.run, overrides=parsed.overrides)
    config = settings(of_run, of_run=True)
    bundle = _bundle(parsed, config)
    prepare_process()
    import torch

    if parsed.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device is cuda, but torch sees no GPU here: run it where there is one, or leave --device out.")
    if parsed.threads:
        torch.set_num_threads(parsed.threads)
    with tempfile.TemporaryDirectory() as temporary:
        world = make_world(parsed, config, bundle, Path(temporary))
        if parsed.where_time_goes:
            profile(world, parsed.where_time_goes)
            return
        unfinished = folder / UNFINISHED
        names = parsed.only or PARTS
        results = measure(world, names, keep=lambda found: write(unfinished, make_record(world, found, name=name, quick=parsed.quick)))
        write(folder, make_record(world, results, name=name, quick=parsed.quick))
    shutil.rmtree(unfinished)
    log.info("%s", folder / f"{name}.md")


def _parser() -> argparse.ArgumentParser:
    parser = new_parser("bench", __doc__)
    parser.add_argument("--bundle", metavar="FOLDER", help="a trained bundle (default: the last one of --run)")
    parser.add_argument("--quick", action="store_true", help="few runs and small sizes: about two minutes")
    parser.add_argument("--only", action="append", choices=PARTS, metavar="NAME", help=f"one part; may be given again: {', '.join(PARTS)}")
    parser.add_argument("--where-time-goes", choices=PARTS, metavar="NAME", help="measure nothing; print where the time of a part goes")
    parser.add_argument("--check", action="store_true", help="measure nothing; fail if the page or the picture is not what the JSON gives")
    parser.add_argument("--out", metavar="FOLDER", help="where the page goes (default: docs; with --quick or --only runs/bench)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="cuda measures the large backbone alone (default: cpu)")
    parser.add_argument("--shape", help=f"the large backbone: {MEDIUM}, a name such as qwen3-vl-4b, or none (default: {MEDIUM}; none with --quick)")
    parser.add_argument("--shrink", action="store_true", help="that shape's structure, tiny: to see that it runs")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="of the backbones' weights (default: float32, on a GPU bfloat16)")
    parser.add_argument("--threads", type=int, default=0, help="of torch (default: its own choice)")
    parser.add_argument("--run", metavar="NAME", help="whose settings, and whose last bundle unless --bundle is given (default: mini)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that win over the run's")
    return parser


def _bundle(parsed: argparse.Namespace, config: RunConfig) -> Path | None:
    if parsed.device == "cuda":
        return None
    if parsed.bundle is None:
        folder = require_finished(config)
        last = folder.last_done()
        assert last is not None
        return folder.bundle(last)
    if not Path(parsed.bundle).is_dir():
        raise ConfigError(
            f"--bundle is {parsed.bundle}, but there is no such folder: give the folder that a stage wrote, such as runs/mini/3_gate/bundle."
        )
    return Path(parsed.bundle)


def make_world(parsed: argparse.Namespace, config: RunConfig, bundle: Path | None, folder: Path) -> World:
    """What the parts share.

    Args:
        parsed: Of the command line.
        config: Of the bundle's run.
        bundle: That is trained, or None where only the large backbone is measured.
        folder: For random backbones.
    """
    import torch

    from experiments.bench.subjects import World

    return World(
        config,
        bundle,
        folder,
        torch.device(parsed.device),
        parsed.dtype or ("bfloat16" if parsed.device == "cuda" else "float32"),
        _shape(parsed),
        parsed.shrink,
        sizes(device=parsed.device, quick=parsed.quick),
    )


def _shape(parsed: argparse.Namespace) -> str:
    shape = parsed.shape or ("none" if parsed.quick and parsed.device == "cpu" else MEDIUM)
    return "" if shape == "none" else str(shape)


def parts() -> dict[str, Callable[[World], Cases]]:
    """By name."""
    from experiments.bench import encoding, passes, searching

    functions = (encoding.modes, encoding.generate, encoding.never, passes.stage1, passes.rollouts, searching.ranking, searching.scaling)
    return dict(zip(PARTS, functions, strict=True))


def measure(world: World, names: Sequence[str], *, keep: Callable[[Sequence[Result]], None]) -> list[Result]:
    """Every case of some parts; a line on each.

    Args:
        world: What is measured.
        names: Of the parts.
        keep: Told after each part of all results so far: a later part may run out of memory or time.
    """
    from experiments.display import progress

    results: list[Result] = []
    for name in PARTS:
        if name not in names:
            continue
        started = time.monotonic()
        with progress(f"bench: {name}") as advance:
            for case in parts()[name](world):
                runs = len(case.variants) * (2 * case.rounds + 1)
                result = measured(name, case, clock=world.clock(), progress=lambda done, runs=runs: advance(done, runs))  # type: ignore[misc]
                log.info("%s · %s: %s", name, result.setting, _said(result))
                results.append(result)
                del case  # its models, before the next one's are made
        log.info("%s took %.0f s", name, time.monotonic() - started)
        keep(results)
    return results


def profile(world: World, name: str) -> None:
    """Prints, for each variant of a part, the operations and the functions that take most of its time."""
    from experiments.bench.profiling import profiled

    for case in parts()[name](world):
        for variant, call in case.variants.items():
            sys.stdout.write(f"\n{name} · {case.setting} · {variant}\n{profiled(call, world.device)}")


def make_record(world: World, results: Sequence[Result], *, name: str, quick: bool) -> dict[str, Any]:
    """Everything that the page is made of.

    Args:
        world: What was measured.
        results: Of its parts.
        name: Of the page's file.
        quick: Whether sizes were small.
    """
    import importlib.metadata

    import torch

    from datamodules.mini.suite import data_revision
    from experiments.bench_gpu import device_name
    from experiments.tracking import PACKAGES, commit

    device = device_name(world.device)
    return {
        "name": name,
        "made": time.strftime("%Y-%m-%d", time.gmtime()),
        "commit": commit(),
        "device": device.rpartition(",")[0] if world.device.type == "cpu" else device,
        "threads": torch.get_num_threads(),
        "dtype": world.dtype,
        "versions": {package: importlib.metadata.version(package) for package in PACKAGES},
        "bundle": _described(world.trained_bundle),
        "data": data_revision(),
        "seed": world.seed,
        "quick": quick,
        "backbones": world.titles,
        "sizes": {key: dataclasses.asdict(size) for key, size in world.sizes.items()},
        "results": [dataclasses.asdict(result) for result in results],
    }


def write(folder: Path, record: Mapping[str, Any]) -> None:
    """Writes JSON, page and picture.

    Raises:
        DataError: The folder cannot be written.
    """
    text, picture = render(record)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / f"{record['name']}.json", json.dumps(record, indent=1) + "\n")
        if picture is not None:
            (folder / _picture_name(record)).write_bytes(picture)
        write_atomically(folder / f"{record['name']}.md", text)
    except OSError as error:
        raise DataError(f"{folder} cannot be written ({error.strerror}): choose another with --out.") from error


def render(record: Mapping[str, Any]) -> tuple[str, bytes | None]:
    """Page and picture of a record; no picture where the scaling was not measured."""
    from experiments.bench.picture import scaling_picture

    return make_page(record, picture=_picture_name(record)), scaling_picture([Result.from_json(row) for row in record["results"]])


def check(folder: Path, name: str) -> None:
    """Compares page and picture on disk with what the JSON gives.

    Raises:
        DataError: A file is missing or differs.
    """
    from experiments.bench.picture import same_pixels

    source = folder / f"{name}.json"
    if not source.is_file():
        raise DataError(f"There is no {source}: 'python -m experiments.bench' makes it.")
    text, picture = render(json.loads(source.read_text(encoding="utf-8")))
    page = folder / f"{name}.md"
    if not page.is_file() or page.read_text(encoding="utf-8") != text:
        raise DataError(f"{page} is not what {source.name} gives: write it anew with 'python -m experiments.bench', and change nothing by hand.")
    file = folder / f"{name}_scaling.png"
    if picture is not None and not (file.is_file() and same_pixels(file.read_bytes(), picture)):
        raise DataError(f"{file} is not what {source.name} gives: write it anew with 'python -m experiments.bench'.")


def _picture_name(record: Mapping[str, Any]) -> str:
    return f"{record['name']}_scaling.png"


def _described(bundle: Path | None) -> str:
    """Where a bundle came from, by its own words."""
    if bundle is None:
        return "none, random weights"
    config = json.loads((bundle / "twn_config.json").read_text(encoding="utf-8"))
    made_by = config["provenance"]
    known = ", ".join(f"{key} {made_by[key]}" for key in ("run", "step", "seed", "commit") if key in made_by)
    return f"{known or bundle.name}; threshold {config['gate']['threshold']:.4g}"


def _said(result: Result) -> str:
    return ", ".join(f"{name} {1000 * Spread.of(seconds).median:.1f} ms" for name, seconds in result.seconds.items())


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
