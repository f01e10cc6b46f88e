"""From settings to the JobSpec of a job whose trainer runs in pods: what cannot run there is refused here, offline."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from launcher.errors import RequestError
from launcher.jobs import DEFAULT_QUEUE
from launcher.kinds import Kind
from launcher.kinds.labels import INSTANCE, MANAGED, OWN_PREFIX, RING_CONTROLLER
from launcher.manifests.overlay import read_overlay
from launcher.settings.hardware import refusal
from launcher.settings.layers import Settings
from launcher.settings.options import PLACE, ClusterOptions, JobOptions
from launcher.settings.spec import OUTPUT, JobSpec, in_field_order, renamed
from trainer.shared.config import EMULATED, Layer, TrainConfig, resolve_train_config
from trainer.shared.config.layers import environment_layer, flag_name
from trainer.shared.secrets import secrets_in

# Python's stand-in for bytes that are not UTF-8 (PEP 383).
_BYTES = re.compile("[\ud800-\udfff]")
_PER_POD = {
    "node_rank": "each pod has its own",
    "master_addr": "it is pod 0",
    "rank_table": "MindCluster writes it; see --mindcluster",
}


def make_pod_spec(settings: Settings, kind: Kind) -> JobSpec:
    """Return the spec of a job on a cluster, named by its content unless the user gave a name.

    A restarted pod goes on from its newest checkpoint, so the trainer is always told to resume.

    Raises:
        RequestError: the job cannot run in a pod.
        UsageError: the trainer would refuse a variable of the pods.
    """
    options, train, given = settings.options, settings.train, settings.given
    _refuse_bytes(options, train)
    _refuse_own_names(options)
    _check_train(options, train, given)
    if reason := kind.refusal(options, settings.origins):
        raise RequestError(reason)
    always_told = {"npus", "output", "resume", "run_name", *(("nodes",) if train.nodes > 1 else ())}
    spec = JobSpec(
        name=options.name or "unnamed",
        backend=kind.name,
        train=_train_in_pods(settings),
        given=in_field_order({*given, *always_told}),
        continues=train.resume is not None,
        pods=_pod_options(settings, kind),
        overlay=dict(settings.overlay) if options.overlay is None else read_overlay(options.overlay),
        without_defaults=_without_defaults(settings, kind),
        origins=_recorded_origins(settings, kind),
    )
    _refuse_secrets(spec.overlay)
    _check_variables(spec)
    return renamed(spec, options.name or f"pnas-{train.mode}-{spec.digest[:8]}")


def _refuse_bytes(*models: BaseModel) -> None:
    """Refuse paths of this machine that are not text: a manifest holds only text."""
    for name, setting in (item for model in models for item in model):
        for value in setting if isinstance(setting, tuple) else (setting,):
            if _BYTES.search(str(value)):
                raise RequestError(f"{flag_name(name)} {str(value)[:80]!a}: is not UTF-8; give text")


def _refuse_own_names(options: JobOptions) -> None:
    """Refuse labels and annotations by which launchers and MindCluster's controllers find a job."""
    advice = {INSTANCE: "use --release", RING_CONTROLLER: "use --hardware or --mindcluster"}
    reserved = {*MANAGED, *advice}
    for name in ("job_label", "job_annotation"):
        for text in getattr(options, name):
            key = text.partition("=")[0]
            if key.startswith(OWN_PREFIX) or (name == "job_label" and key in reserved):
                raise RequestError(
                    f"{flag_name(name)} {text}: the launcher itself sets {key}; {advice.get(key, 'leave it out')}"
                )


def _refuse_secrets(overlay: Mapping[str, Any]) -> None:
    """Refuse an overlay that shows a secret. The options have checked the variables."""
    place = next(secrets_in(dict(overlay)), None)
    if place is not None:
        raise RequestError(
            f"--overlay: {place} looks like a secret, which every user could read in the job: put it into a Secret, "
            "and take it from there with --env-from-secret or with `valueFrom`"
        )


def _check_variables(spec: JobSpec) -> None:
    """Refuse a setting in a variable of the pods that the trainer would refuse there.

    Raises:
        UsageError: the variable is empty, or its value breaks a rule.
    """
    told = Layer("flag", {name: getattr(spec.train, name) for name in spec.given})
    variables = environment_layer(TrainConfig, dict(pair.split("=", 1) for pair in spec.pods.env))
    resolve_train_config([told, Layer("--env", variables.values)], partial=True)


def _without_defaults(settings: Settings, kind: Kind) -> dict[str, Any]:
    """Return the settings that cluster defaults change, with their values without them."""
    without = settings.without_defaults
    if without is None:
        return {}
    defaulted = {*settings.given} - {*without.given}
    sections = (
        (_train_in_pods(without), _train_in_pods(settings)),
        (_pod_options(without, kind), _pod_options(settings, kind)),
    )
    return {
        name: value
        for own, all_settings in sections
        for name, value in own.model_dump(mode="json").items()
        if name in defaulted or getattr(own, name) != getattr(all_settings, name)
    }


def _recorded_origins(settings: Settings, kind: Kind) -> dict[str, str]:
    """Return the origins of the settings that count for the job: not of its place, nor of a preset on CPUs."""
    pods, defaults = _pod_options(settings, kind), ClusterOptions()
    names = {*TrainConfig.model_fields, *(name for name, value in pods if value != getattr(defaults, name))}
    return {name: origin for name, origin in settings.changed_origins.items() if name in names}


def _pod_options(settings: Settings, kind: Kind) -> ClusterOptions:
    """Return the settings of the pods; a job without NPUs has no hardware preset.

    The queue of the cluster defaults is Volcano's. An administrator of Kueue calls the default LocalQueue `default`.
    """
    names = (name for name in ClusterOptions.model_fields if name not in PLACE)
    pods = ClusterOptions(**{name: getattr(settings.options, name) for name in names})
    foreign_queue = kind.queue_label and settings.origins["queue"].startswith("cluster defaults")
    without = {"hardware": None} if settings.train.device == "cpu" else {}
    return pods.model_copy(update=without | ({"queue": DEFAULT_QUEUE} if foreign_queue else {}))


def _train_in_pods(settings: Settings) -> TrainConfig:
    """Return the trainer's settings as they are in a pod, where claims are mounted and devices are counted."""
    train = settings.train
    output = train.output if "output" in settings.given else OUTPUT
    return train.model_copy(update={"npus": train.npus or 1, "output": output, "resume": train.resume or "auto"})


def _check_train(options: JobOptions, train: TrainConfig, given: Sequence[str]) -> None:
    """Refuse settings of the trainer that cannot be used in a pod.

    Raises:
        RequestError: one cannot be used.
    """
    if reason := refusal(None if train.device == "cpu" else options.hardware, train.npus or 1, train.nodes):
        raise RequestError(reason)
    for name in given:
        if name in _PER_POD:
            raise RequestError(f"{flag_name(name)}: on a cluster {_PER_POD[name]}; leave it out")
    if train.device == EMULATED:
        raise RequestError(
            f"--device {EMULATED}: pods have no emulated NPUs; leave it out, or use --backend local in a checkout"
        )
    if options.image is None:
        raise RequestError("--image is missing: the image that holds the trainer, like registry.example/pnas:0.1.0")
    output = train.output if "output" in given else OUTPUT
    paths = {"data_path": train.data_path, "output": output, "weights": train.weights, "resume": train.resume}
    for name, path in paths.items():
        if not isinstance(path, Path):
            continue
        if not path.is_absolute():
            raise RequestError(f"{flag_name(name)} {path}: give the absolute path that the pod sees, like /data/x")
        if ".." in path.parts:
            # With links, only the pod could tell where such a path leads.
            raise RequestError(f"{flag_name(name)} {path}: give the path without `..`")
    if not output.is_relative_to(OUTPUT):
        raise RequestError(f"--output {output}: pods keep only what is below {OUTPUT}, the output claim")
