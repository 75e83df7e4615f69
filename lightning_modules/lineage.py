"""Adapters and merged models as W&B artifacts, and which of them a merge was made from.

Nothing needs it to run: adapters are found by path. A version of ``adapter-<title of its training>`` has as an alias
the first digits of each content hash in it, so that a merge names the very bytes that it read.
"""

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, WandbLogger

from launch.bundles import CARD, bundle_content, title_of
from launch.labels import digest
from lightning_modules.adapter import AdapterBundle

log = logging.getLogger(__name__)
LONGEST = 128  # characters of an artifact's name
SHOWN = 12  # hexadecimal digits of a content hash


def artifact_name(*parts: str) -> str:
    """Parts joined by hyphens in characters that W&B takes; of a name that is too long its hash tells the rest."""
    joined = "-".join(parts)
    name = re.sub(r"[^A-Za-z0-9._-]", "-", joined)
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 7]}-{digest(joined)}"


def log_bundle(loggers: list[Logger], folder: Path, title: str, metadata: Mapping[str, Any]) -> None:
    """Logs a training's adapter as a W&B artifact; offline it is kept for the next ``wandb sync``.

    Args:
        folder: of a bundle, or of several tasks' bundles.
        title: the readable part of the training's name.
    """
    contents = sorted(bundle_content(card.parent)[:SHOWN] for card in folder.rglob(CARD))
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            import wandb

            artifact = wandb.Artifact(artifact_name("adapter", title), type="adapter", metadata=dict(metadata))
            artifact.add_dir(str(folder))
            logger.experiment.log_artifact(artifact, aliases=["latest", *contents])


def reference(bundle: AdapterBundle) -> str:
    """``name:alias`` of the artifact as which ``log_bundle`` logged a bundle, if it did."""
    run = str(bundle.card.get("run") or title_of(str(bundle.path)))
    title = run.removeprefix("train-").removesuffix(f"-{bundle.card.get('config_hash')}")
    return f"{artifact_name('adapter', title)}:{bundle.content[:SHOWN]}"


def log_inputs(loggers: list[Logger], bundles: Mapping[str, AdapterBundle]) -> None:
    """Writes what a merge reads into the W&B run's config as ``inputs``; online it names their artifacts as well.

    Adapters that the server does not have, since they were trained offline or without W&B, are told in the log: no
    merge fails for its lineage. Tested with a stand-in for the run only, not against a server.

    Args:
        bundles: by task.
    """
    inputs = [
        {"name": name, "folder": bundle.path.absolute().name, "sha256": bundle.content}
        for name, bundle in bundles.items()
    ]
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.experiment.config.update({"inputs": inputs}, allow_val_change=True)  # a resumed run has them
            if _is_online(logger.experiment):
                for bundle in bundles.values():
                    _use(logger.experiment, bundle)


def log_model(loggers: list[Logger], folder: Path, name: str, alias: str, metadata: Mapping[str, Any]) -> None:
    """Logs a merged model's folder as a W&B artifact, online only: tested with a stand-in, not against a server.

    A model is hundreds of MB, and offline each merge would leave that much for a ``wandb sync``.
    """
    for logger in loggers:
        if isinstance(logger, WandbLogger) and _is_online(logger.experiment):
            import wandb

            artifact = wandb.Artifact(name, type="merged-model", metadata=dict(metadata))
            # as it lies there: W&B would copy it once before it is uploaded and once after
            artifact.add_dir(str(folder), skip_cache=True, policy="immutable")
            logger.experiment.log_artifact(artifact, aliases=["latest", alias])


def _is_online(run: Any) -> bool:
    return not (run.offline or run.disabled)


def _use(run: Any, bundle: AdapterBundle) -> None:
    import wandb
    from wandb.sdk.lib.service.service_connection import WandbApiFailedError

    name = reference(bundle)
    try:
        run.use_artifact(name, type="adapter")
    except (ValueError, wandb.errors.Error, WandbApiFailedError) as error:  # the first: there is none of this name
        log.warning(
            "%s: W&B gave no artifact %s (%s), so this merge is not linked to it; the run's config has its hash. "
            "An offline training is uploaded by `wandb sync`.",
            bundle.path, name, error,
        )  # fmt: skip
