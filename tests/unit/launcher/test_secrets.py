"""Secrets are refused wherever they enter a job; texts that only resemble one are accepted."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from launcher.errors import RequestError
from launcher.kinds import kind_named
from launcher.manifests.pod_spec import make_pod_spec
from launcher.settings.layers import Earlier, resolve_settings
from trainer.shared.config import ConfigError, Layer
from trainer.shared.secrets import holds_secret, looks_secret, secrets_in

NAMES = (
    *(
        "MYSQL_PWD",
        "GIT_AUTH",
        "BEARER",
        "AUTHORIZATION",
        "JWT",
        "JWT_2",
        "HF_TOKEN",
        "HUB_TOKENS",
        "DB_PASS",
        "DBPASS",
    ),
    *("dbPassword", "db.password", "db-password", "WANDB_API_KEY", "OPENAI_KEY", "SSHKEY", "GITLAB_PAT", "SENTRY_DSN"),
    *("AWS_SECRET_ACCESS_KEY", "ACCOUNT_KEY", "PROXY_AUTHORIZATION", "BASIC_AUTH", "SESSION_COOKIE", "PGPASSWORD"),
    *("X_AUTH_TOKEN", "GOOGLE_CREDENTIALS", "VAULT_TOKEN", "SIGNING_KEY", "KEY_PASSPHRASE", "client_secret"),
)
HARMLESS = (
    *("TOKENIZERS_PARALLELISM=false", "MAX_TOKENS=5", "TOKEN_FILE=/run/x", "API_TOKEN=", "SINGLE_PASS=1", "SORT_KEY=x"),
    *("PWD=/home/pnas", "OLDPWD=/", "AUTH_MODE=oidc", "AUTH=none", "PASSES=3", "KEYBOARD=de", "PATH=/bin", "AUTHOR=me"),
    *("SSH_PUBLIC_KEY=ssh-ed25519 AAAA", "TOKEN_TTL=5m", "HTTPS_PROXY=http://proxy:3128", "GIT=git@host:group/x.git"),
    *("URL=https://me@host/x", "MAIL=mailto:me@host", "IMAGE=r.example:5000/p@sha256:00", "X=a@b:c", "OPTS=--key=2"),
    *("TOKEN_ENDPOINT=h", "SECRET_PROVIDER=x", "TOKEN_COUNT=5"),
    *("NOTE=the bearer of bad news", "TIME=12:30", "CERT=-----BEGIN CERTIFICATE-----"),
)
HARMLESS_TEXTS = (
    *(
        "--token=$(T) --password=${P}",
        "--password=`p`",
        "--token-file=/t --key=2 key=3",
        "a==b",
        "=",
        "x=--y",
        "auth=on",
    ),
    *("bearer authentication", "Bearer token", "mailto:me@host.org", "app:1.2@sha256:0123456789abcdef", "Name: value"),
)
VALUES = (
    *("postgres://u:pw@h/db", "http://u:pw@proxy:3128", "u:pw@proxy:3128", "redis://:pw@h", "mongodb+srv://u:p@h/?a=b"),
    *(
        "see https://u:pw@h",
        "ghp_0123456789abcdef",
        "url=https://x/?token=abcdef",
        "Server=h;Password=x;",
        "--password=x",
        "run --lr=1 --token = 'x'",
        "a=b&token=x",
        "Bearer 0123456789abcdef",
        "me:p@h/",
    ),
    *("AccountName=n;AccountKey=abc==", "Authorization: Basic dTpw", "Bearer abcdefghijk1234567890", "HF_TOKEN=hf run"),
    *("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.x", "-----BEGIN RSA PRIVATE KEY-----", "AKIAABCDEFGHIJKLMNOP"),
)
# An overlay, and the place that the message names.
OVERLAYS: tuple[tuple[str, str], ...] = (
    ("spec: {containers: [{name: t, env: [{name: A, value: b}, {name: HF_TOKEN, value: x}]}]}", "env[1] (HF_TOKEN)"),
    ("spec: {initContainers: [{name: i, env: [{name: MYSQL_PWD, value: x}]}]}", "spec.initContainers[0].env[0]"),
    ("spec: {containers: [{name: t, env: [{name: URL, value: 'amqp://u:p@h'}]}]}", "spec.containers[0].env[0] (URL)"),
    ("spec: {containers: [{name: s, args: [--token, abc]}]}", "spec.containers[0].args[1] (after --token)"),
    ("spec: {containers: [{name: s, args: [--db-password=abc]}]}", "spec.containers[0].args[0]"),
    ("spec: {containers: [{name: s, command: [sh, -c, 'export GIT_AUTH=abc; run']}]}", "spec.containers[0].command[2]"),
    ("metadata: {annotations: {vault/token: abc}}", "metadata.annotations.vault/token"),
    ("metadata: {annotations: {config: 'password: abc'}}", "metadata.annotations.config"),
    ("metadata: {labels: {jwt: abc}}", "metadata.labels.jwt"),
    ("metadata: {annotations: {example.com/dbPassword: abc}}", "metadata.annotations.example.com/dbPassword"),
    (
        "spec: {containers: [{name: s, livenessProbe: {httpGet: {httpHeaders: [{name: Authorization, value: x}]}}}]}",
        "httpHeaders[0] (Authorization)",
    ),
    ("spec: {volumes: [{name: v, csi: {driver: d, volumeAttributes: {password: x}}}]}", "volumeAttributes.password"),
    ("spec: {volumes: [{name: v, flexVolume: {driver: d, options: {secretKey: x}}}]}", "options.secretKey"),
)
HARMLESS_OVERLAYS = (
    "spec: {containers: [{name: t, env: [{name: T, valueFrom: {secretKeyRef: {name: token, key: password}}}]}]}",
    "spec: {containers: [{name: t, env: [{name: HF_TOKEN, value: $(T)}, {name: U, value: 'http://u:$(P)@h'}]}]}",
    "spec: {containers: [{name: s, args: [--token, $(T), --password=$(P), --token-file, /run/t, --password, --x]}]}",
    "spec: {containers: [{name: s, envFrom: [{secretRef: {name: tokens}}], command: [sort, --key, '2']}]}",
    "spec: {volumes: [{name: token, projected: {sources: [{serviceAccountToken: {path: token}}]}}]}",
    "spec: {imagePullSecrets: [{name: password}], tolerations: [{key: token, operator: Exists}]}",
    "spec: {containers: [{name: s, command: [sh, -c, 'export HF_TOKEN=$(cat /run/t) A_KEY=${B} PASSWORD=`p`; run']}]}",
    "metadata: {annotations: {vault.hashicorp.com/agent-inject-secret-config: secret/data/app, x/inject-token: 'on'}}",
    "metadata: {annotations: {vault.hashicorp.com/agent-inject-secret-db-token: database/creds/app}}",
    "metadata: {annotations: {secret.reloader/reload: app, ad/instances: 'password: \"%%env_PW%%\"'}}",
    "spec: {volumes: [{name: v, csi: {driver: d, volumeAttributes: {secretProviderClass: app, secretName: s}}}]}",
    "metadata: {annotations: {sidecar/inject: 'false', token-ttl: 5m}, labels: {team: a}}",
)


@pytest.mark.parametrize("name", NAMES)
def test_names_of_secrets(name: str) -> None:
    assert looks_secret(name, "abc")
    assert not looks_secret(name, "")


@pytest.mark.parametrize("text", VALUES)
def test_values_that_hold_a_secret(text: str) -> None:
    assert holds_secret(text)


@pytest.mark.parametrize("text", HARMLESS)
def test_variables_that_only_resemble_a_secret(text: str) -> None:
    name, _, value = text.partition("=")
    assert not looks_secret(name, value)


@pytest.mark.parametrize("text", HARMLESS_TEXTS)
def test_values_that_only_resemble_a_secret(text: str) -> None:
    assert not holds_secret(text)


@pytest.mark.parametrize(("text", "place"), OVERLAYS)
def test_an_overlay_with_a_secret_is_refused_by_its_place(text: str, place: str, tmp_path: Path) -> None:
    with pytest.raises(RequestError) as error:
        _spec(overlay=_overlay(tmp_path, text))
    message = str(error.value)
    assert place in message
    assert "abc" not in message


@pytest.mark.parametrize("text", HARMLESS_OVERLAYS)
def test_an_overlay_that_takes_its_secrets_from_elsewhere_is_accepted(text: str, tmp_path: Path) -> None:
    assert list(secrets_in(yaml.safe_load(text))) == []
    assert _spec(overlay=_overlay(tmp_path, text)).overlay


@pytest.mark.parametrize("layer", ["flag", "profile", "environment", "defaults", "earlier"])
def test_a_variable_with_a_secret_is_refused_from_every_layer_and_not_shown(layer: str, tmp_path: Path) -> None:
    text = "DATABASE_URL=postgres://u:hidden@h"
    profile = tmp_path / "profile.yaml"
    profile.write_text('{"env": {"DATABASE_URL": "postgres://u:hidden@h"}}')
    values = Layer(layer, {"env": [text]})
    with pytest.raises(ConfigError, match="`DATABASE_URL` looks like a secret") as error:
        resolve_settings(
            values.values if layer == "flag" else {},
            str(profile) if layer == "profile" else None,
            {"PNAS_ENV": text} if layer == "environment" else {},
            earlier=Earlier(job=values) if layer == "earlier" else Earlier(),
            defaults=(lambda _: values) if layer == "defaults" else None,
        )
    assert "hidden" not in str(error.value)


@pytest.mark.parametrize("name", ["output", "data_path", "weights", "resume"])
def test_a_path_in_a_pod_has_no_way_up(name: str) -> None:
    with pytest.raises(RequestError, match=re.escape("without `..`")):
        _spec(**{name: Path("/output/../x")})


def _overlay(folder: Path, text: str) -> Path:
    path = folder / "overlay.yaml"
    path.write_text(text)
    return path


def _spec(**flags: Any) -> Any:
    settings = resolve_settings({"image": "r/pnas:1", "npus": 8, **flags}, None, {})
    return make_pod_spec(settings, kind_named("volcano"))
