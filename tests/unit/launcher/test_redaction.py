"""A bundle has no secret, in whatever form it stands in a log, an object or a file."""

import base64
import json
import os
import random
import string
from urllib.parse import quote

import pytest

from launcher.results.redaction import HIDDEN, Redactor

SEED = 20
SEEDS = int(os.environ.get("PNAS_TEST_REDACTION_SEEDS", "3"))
LETTERS = string.ascii_letters + string.digits
# %s is the secret. Each is a line as programs, shells and clusters write it.
LINES = (
    "HF_TOKEN=%s",
    "export AWS_SECRET_ACCESS_KEY='%s'",
    'DB_PASSWORD="%s and more"',
    "environ: {'WANDB_API_KEY': '%s', 'HOME': '/root'}",
    '{"level": "info", "token": "%s"}',
    '{"log": "{\\"password\\": \\"%s\\"}"}',
    "password: %s",
    "INFO auth: token: %s",
    "Authorization: Bearer %s",
    "Authorization: Basic %s",
    "> authorization: Digest username=x, response=%s",
    "Cookie: session=%s",
    "Set-Cookie: sid=%s; Path=/",
    "X-Api-Key: %s",
    "curl -u ann:%s https://example.org",
    "curl --user ann:%s https://example.org",
    "curl -H 'Authorization: Bearer %s'",
    "git clone https://ann:%s@example.org/x.git",
    "redis://:%s@redis:6379/0",
    "http_proxy=http://ann:%s@proxy:3128",
    "postgresql://ann:%s@db/x?sslmode=require",
    "Server=db;Database=x;User Id=ann;Password=%s;",
    "DefaultEndpointsProtocol=https;AccountName=x;AccountKey=%s;EndpointSuffix=core.example",
    "GET /x?api_key=%s&page=2 HTTP/1.1",
    "GET https://x.blob.example/y?sv=2020&sig=%s",
    "python train.py --hf-token %s --lr 0.1",
    "python train.py --password=%s",
    "cmd=--token=%s",
    "docker login -u ann --password %s registry.example",
    "client-key-data: %s",
    "    token: %s",
    "    id-token: %s",
    "    refresh-token: %s",
    '{"auths": {"registry.example": {"auth": "%s"}}}',
    "machine example.org login ann password %s",
    "the password is %s",
    "  - name: MODEL_SECRET  value: %s",
    "V1EnvVar(name='GITHUB_TOKEN', value='%s')",
    '{"name": "LICENSE_KEY", "value": "%s"}',
    "secret %s was not accepted",
    "using key ghp_%s",
    "using key hf_%s",
    "pushed with glpat-%s",
    "assumed AKIAABCD%s",
    "jwt eyJhbGciOiJIUzI1NiJ9.%s.x",
    "npm_%s",
    "the launcher's own login is KNOWN",
    "encoded KNOWN64",
    "in an address KNOWNURL",
    "in JSON KNOWNJSON",
)
KEPT = (
    "[rank 3 npu:3 #1042] step epoch=0 step=120 steps=5005 loss=6.91 lr=0.4 fps=353 top1=0.4 time=2026-11-30T07:19:07Z",
    "[rank 0 npu:0 #7] result mode=full top1=79.61 top5=94.8 images=50000 output=/output/r1",
    '{"kind": "step", "epoch": 0, "step": 3, "global_step": 3, "loss": 6.9, "lr": 0.4}',
    "HCCL_CONNECT_TIMEOUT=600 ASCEND_GLOBAL_LOG_LEVEL=3 HOME=/root",
    "[ERROR] HCCL(7,python):2026-11-30-07:19:07.1 [hccl_socket.cc:88]connect to 10.0.0.1:60000 timeout",
    'File "/opt/pnas/lib/python3.11/site-packages/torch/nn/modules/module.py", line 1751, in _call_impl',
    "checkpoint step=120 path=/output/r1/checkpoints/step-000000120 sha256=9f86d081884c7d659a2feaa0c55ad015",
    "keep: 3",
)


def test_there_are_fifty() -> None:
    assert len(LINES) == 50


@pytest.mark.parametrize("seed", range(SEED, SEED + SEEDS))
def test_no_planted_secret_is_left(seed: int) -> None:
    chance = random.Random(seed)
    login = '/+"' + "".join(chance.choices(LETTERS + "/+ ", k=31))
    redactor = Redactor([login])
    planted, lines = [], []
    for line in LINES:
        secret = "".join(chance.choices(LETTERS, k=chance.randrange(12, 60))) + "7"
        planted.append(secret)
        text = line.replace("KNOWN64", base64.b64encode(f"user:{login}@".encode()).decode())
        text = text.replace("KNOWNURL", quote(login, safe="")).replace("KNOWNJSON", json.dumps(login))
        lines.append(text.replace("KNOWN", login).replace("%s", secret))
    output = "".join(redactor.lines(f"{line}\n" for line in lines))
    left = [line for line, secret in zip(LINES, planted, strict=True) if secret in output]
    assert left == []
    for form in (login, quote(login, safe=""), json.dumps(login)[1:-1], base64.b64encode(login.encode()).decode()[:20]):
        assert form not in output
    assert output.count("\n") == len(LINES), "each line stays one"
    assert redactor.hidden >= len(LINES)


def test_a_private_key_is_hidden_to_its_end() -> None:
    text = "before\n-----BEGIN RSA PRIVATE KEY-----\nabc/+\ndef\n-----END RSA PRIVATE KEY-----\nafter\n"
    assert Redactor().text(text) == f"before\n{HIDDEN}\n{HIDDEN}\n{HIDDEN}\n{HIDDEN}\nafter\n"


@pytest.mark.parametrize(
    "text",
    [
        "env:\n- name: MY_TOKEN\n  value: s3cret-value\n- name: HOME\n  value: /root\n",
        '  "name": "MY_TOKEN",\n  "value": "s3cret-value"\n',
        "args:\n- --hf-token\n- s3cret-value\n- --lr\n- 0.1\n",
    ],
)
def test_a_value_in_the_line_after_its_name_is_hidden(text: str) -> None:
    output = Redactor().text(text)
    assert "s3cret" not in output
    assert output.count(HIDDEN) == 1
    assert output.count("\n") == text.count("\n")


@pytest.mark.parametrize("line", KEPT)
def test_a_line_without_a_secret_stays_as_it_is(line: str) -> None:
    assert Redactor().text(line) == line


def test_objects_lose_their_secrets_and_nothing_else() -> None:
    pod = {
        "metadata": {
            "annotations": {
                "example.org/token": "s3cret-one",
                "pnas/spec": json.dumps({"train": {"lr": 0.1}, "api_key": "s3cret-two"}),
            }
        },
        "spec": {
            "containers": [
                {
                    "args": ["--lr", "0.1", "https://ann:s3cret-three@example.org"],
                    "env": [
                        {"name": "MY_PASSWORD", "value": "s3cret-four"},
                        {"name": "HOME", "value": "/home/pnas"},
                        {"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "x", "key": "y"}}},
                    ],
                }
            ]
        },
    }
    result = Redactor().value(pod)
    text = json.dumps(result)
    assert "s3cret" not in text
    assert json.loads(result["metadata"]["annotations"]["pnas/spec"])["train"] == {"lr": 0.1}
    (container,) = result["spec"]["containers"]
    assert container["args"][:2] == ["--lr", "0.1"]
    assert container["env"][1:] == pod["spec"]["containers"][0]["env"][1:]  # type: ignore[index]  # a plain dictionary
