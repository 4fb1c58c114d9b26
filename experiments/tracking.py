"""The only door to MLflow: a parent run for the pipeline, a nested child for each stage, and the logger that Lightning sees."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import subprocess
import time
from argparse import Namespace
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.runs import write_atomically
from twn_lightning.configs.load import flatten
from twn_lightning.configs.run import RunConfig
from twn_lightning.errors import ConfigError
from twn_lightning.torchvision_compat import ensure_torchvision

ensure_torchvision()  # lightning imports torchvision

import torch  # noqa: E402
from filelock import FileLock  # noqa: E402
from lightning.pytorch.loggers.logger import Logger  # noqa: E402
from lightning_utilities.core.rank_zero import rank_zero_only  # noqa: E402

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from mlflow import MlflowClient

PACKAGES = ("torch", "lightning", "transformers", "peft", "torchmetrics", "omegaconf", "mlflow", "numpy")
_MAX_PARAMS, _MAX_METRICS, _MAX_VALUE = 100, 1000, 6000
_FORBIDDEN = re.compile(r"[^\w\-. :/]")


class TrackingLogger(Logger):
    """One MLflow run as a Lightning logger that also takes texts, figures and files.

    Args:
        client: MLflow's client, or None if tracking is switched off: then nothing is recorded.
        run_id: The MLflow run.
        name: Name of the run.
    """

    def __init__(self, client: MlflowClient | None, run_id: str, name: str) -> None:
        super().__init__()
        self._client, self._run_id, self._name = client, run_id, name

    @property
    def name(self) -> str:
        """Name of the run."""
        return self._name

    @property
    def version(self) -> str:
        """MLflow's run id; empty if tracking is switched off."""
        return self._run_id

    @property
    def experiment(self) -> MlflowClient | None:
        """MLflow's client."""
        return self._client

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Record numbers at a step; characters that MLflow refuses become words (hit@1 → hit_at_1)."""
        if self._client is None:
            return
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        entities = [Metric(metric_key(key), float(value), now, step or 0) for key, value in metrics.items() if key != "epoch"]
        for chunk in _chunks(entities, _MAX_METRICS):
            self._client.log_batch(self._run_id, metrics=chunk)

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Record settings that the run does not hold yet (a setting of a resumed run cannot change)."""
        if self._client is None:
            return
        from mlflow.entities import Param

        given = vars(params) if isinstance(params, Namespace) else params
        known = self._client.get_run(self._run_id).data.params
        fresh = [Param(key, value) for key, value in _as_params(given).items() if key not in known]
        for chunk in _chunks(fresh, _MAX_PARAMS):
            self._client.log_batch(self._run_id, params=chunk)

    @rank_zero_only
    def log_text(self, name: str, text: str) -> None:
        """Store a text as an artifact of this name (folders allowed: ``samples/step-100.md``)."""
        if self._client is not None:
            self._client.log_text(self._run_id, text, name)

    @rank_zero_only
    def log_figure(self, name: str, figure: Figure) -> None:
        """Store a matplotlib figure as an artifact; the name ends in .png or .svg."""
        if self._client is not None:
            self._client.log_figure(self._run_id, figure, name)

    @rank_zero_only
    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        """Store a file, or a whole folder, as artifacts under the given artifact folder."""
        if self._client is None:
            return
        if path.is_dir():
            self._client.log_artifacts(self._run_id, str(path), folder or path.name)
        else:
            self._client.log_artifact(self._run_id, str(path), folder)

    @rank_zero_only
    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags of the run."""
        if self._client is not None:
            for key, value in tags.items():
                self._client.set_tag(self._run_id, key, value)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """End the run as Lightning says it ended: "success" or "failed"."""
        if self._client is not None:
            self._client.set_terminated(self._run_id, "FINISHED" if status in ("success", "finished") else "FAILED")


class Tracking:
    """The MLflow runs of one pipeline run; a resumed pipeline goes on in the same ones.

    The parent's tags (environment, and those given) are those of the command that began it; each child's are those of the command that last worked
    on it.

    Args:
        config: The run's settings.
        folder: The run's folder, which keeps the MLflow run ids in ``mlflow.json``.
        tags: Further tags of the parent run.

    Raises:
        ConfigError: The store cannot be opened.
    """

    def __init__(self, config: RunConfig, folder: Path, tags: Mapping[str, str] | None = None) -> None:
        self._config = config
        self._ids_file = folder / "mlflow.json"
        self._client: MlflowClient | None = None
        self._experiment_id = ""
        self._ids: dict[str, str] = {}
        self._environment = environment_tags(config)
        if config.tracking.enabled and getattr(rank_zero_only, "rank", 0) == 0:
            self._client, self._experiment_id = _open_store(config)
            self._ids = self._known_ids(self._client)
        self.parent = self._run("", {"mlflow.runName": config.name, **self._environment, **(tags or {})})

    def child(
        self, name: str, tags: Mapping[str, str] | None = None, *, config: RunConfig | None = None, same_settings: bool = False
    ) -> TrackingLogger:
        """A nested run; the one begun earlier under this name, if there is one.

        Args:
            name: Unique within this pipeline run, e.g. a stage's name.
            tags: Tags to set.
            config: Settings to record, if they differ from the pipeline's.
            same_settings: A run begun under this name with other settings is left as it is, and a new one takes its place: for what is made whole
                each time, such as an evaluation.
        """
        begun = self._ids.get(name)
        if same_settings and begun is not None and self._has_other_settings(begun, config or self._config):
            del self._ids[name]
        return self._run(name, {"mlflow.runName": f"{self._config.name}/{name}", **self._environment, **(tags or {})}, config=config)

    @contextmanager
    def running(self) -> Iterator[Tracking]:
        """End the parent run as FINISHED, KILLED (Ctrl-C) or FAILED, as the block ends."""
        status = "FAILED"
        try:
            yield self
            status = "FINISHED"
        except KeyboardInterrupt:
            status = "KILLED"
            raise
        finally:
            if self._client is not None:
                self._client.set_terminated(self.parent.version, status)

    def _run(self, name: str, tags: Mapping[str, str], *, config: RunConfig | None = None) -> TrackingLogger:
        if self._client is None:
            return TrackingLogger(None, "", name or self._config.name)
        run_id = self._ids.get(name)
        if run_id is None:
            parent = {"mlflow.parentRunId": self.parent.version} if name else {}
            run_id = self._client.create_run(self._experiment_id, tags={**tags, **parent}).info.run_id
            self._ids[name] = run_id
            write_atomically(self._ids_file, json.dumps({"store": store_uri(self._config), "runs": self._ids}, indent=2))
        else:
            self._client.update_run(run_id, status="RUNNING")
        logger = TrackingLogger(self._client, run_id, name or self._config.name)
        if name:
            logger.set_tags(tags)
        logger.log_hyperparams(dict(flatten(config or self._config)))
        return logger

    def _has_other_settings(self, run_id: str, config: RunConfig) -> bool:
        assert self._client is not None
        return not _as_params(flatten(config)).items() <= self._client.get_run(run_id).data.params.items()

    def _known_ids(self, client: MlflowClient) -> dict[str, str]:
        if not self._ids_file.is_file():
            return {}
        from mlflow.exceptions import MlflowException

        content = json.loads(self._ids_file.read_text(encoding="utf-8"))
        if content["store"] != store_uri(self._config):
            return {}
        known: dict[str, str] = {}
        for name, run_id in content["runs"].items():
            try:
                alive = client.get_run(run_id).info.lifecycle_stage == "active"
            except MlflowException:  # deleted from the store: a new run takes its place
                alive = False
            if not alive and name == "":
                return {}
            if alive:
                known[name] = run_id
        return known


def store_uri(config: RunConfig) -> str:
    """Where MLflow keeps its runs: the URI that was set, or ``mlflow.db`` in the output folder."""
    return config.tracking.uri or f"sqlite:///{Path(config.output_dir).resolve() / 'mlflow.db'}"


def environment_tags(config: RunConfig) -> dict[str, str]:
    """What a result depends on besides its settings: commit, versions, machine, device, seed."""
    versions = {f"version.{package}": importlib.metadata.version(package) for package in PACKAGES}
    machine = f"{platform.system()} {platform.machine()}"
    made_on = {"python": platform.python_version(), "platform": machine, "device": device_name(config)}
    return {"commit": commit(), "seed": str(config.seed), **made_on, **versions}


def device_name(config: RunConfig) -> str:
    """What computes: the GPU's name, with their number where there are several, or the processor's with the number of threads."""
    trainer = config.trainer
    if trainer.accelerator in ("gpu", "auto") and torch.cuda.is_available():
        count = trainer.num_nodes * (torch.cuda.device_count() if trainer.devices == -1 else trainer.devices)
        return torch.cuda.get_device_name() if count == 1 else f"{count} × {torch.cuda.get_device_name()}"
    threads = trainer.num_threads or torch.get_num_threads()
    return f"{_processor_name()}, {threads} {'thread' if threads == 1 else 'threads'}"


def _processor_name() -> str:
    listing = Path("/proc/cpuinfo")
    lines = listing.read_text(encoding="utf-8").splitlines() if listing.is_file() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor() or platform.machine()


def commit() -> str:
    """The checkout's commit, with "-dirty" if files differ from it; "unknown" outside a checkout."""
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return found.stdout.strip()


def metric_key(key: str) -> str:
    """A name that MLflow takes: letters, digits, ``_ - . : /`` and spaces."""
    return _FORBIDDEN.sub("_", key.replace("@", "_at_"))


def _as_params(settings: Mapping[str, Any]) -> dict[str, str]:
    """Settings by the names and in the length that MLflow takes."""
    return {metric_key(key): str(value)[:_MAX_VALUE] for key, value in settings.items()}


def store_lock(uri: str) -> FileLock:
    """Held while a store in a file (``sqlite:///…``) is opened: two runs that make its tables at the same moment break each other."""
    path = Path(uri.removeprefix("sqlite:///"))
    path.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(path.with_name(path.name + ".lock"))


def _open_store(config: RunConfig) -> tuple[MlflowClient, str]:
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    uri = store_uri(config)
    is_file = uri.startswith("sqlite:///")
    try:
        with store_lock(uri) if is_file else nullcontext():
            client = MlflowClient(tracking_uri=uri)
            experiment = client.get_experiment_by_name(config.tracking.experiment)
            if experiment is None:
                location = (Path(config.output_dir).resolve() / "mlartifacts").as_uri() if is_file else None
                return client, str(client.create_experiment(config.tracking.experiment, artifact_location=location))
    except (MlflowException, OSError) as error:
        raise ConfigError(f"tracking.uri {uri!r} cannot be opened ({str(error).splitlines()[0]}): mend it, or set tracking.enabled=false.") from None
    return client, str(experiment.experiment_id)


def _chunks(items: list[Any], size: int) -> Iterable[list[Any]]:
    return (items[start : start + size] for start in range(0, len(items), size))
