"""A bundle has no secret, in whatever form it stands in a log, an object or a file."""

import base64
import json
import os
import random
import string
from urllib.parse import quote

import pytest

from trainer.shared.redaction import HIDDEN, Redactor

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
# As shells, cloud tools, registries and colourful loggers write them.
LINES_OF_TOOLS = (
    r"\x1b[32mtoken\x1b[0m=\x1b[33m%s\x1b[0m",
    "set -gx HF_TOKEN %s",
    "setenv HF_TOKEN %s",
    "ENV HF_TOKEN %s",
    'os.environ["HF_TOKEN"] = "%s"',
    "env['DB_PASSWORD']='%s'",
    "('X-Api-Key', '%s')",
    '"api_key", "%s"',
    "token : %s",
    "| HF_TOKEN | %s |",
    "HF_TOKEN    %s",
    "│ HF_TOKEN │ %s │",
    "\x1b[32mtoken\x1b[0m=\x1b[33m%s\x1b[0m",
    "\x1b[1mAuthorization\x1b[0m: \x1b[2mBearer %s\x1b[0m",
    "GET /v1?access_token=%s HTTP/1.1",
    "wss://host/?bearer=%s",
    "callback#id_token=%s",
    "x?Authorization=Bearer%20%s",
    "body: token%3D%s%26a=b",
    "X-Amz-Signature=%s&x=1",
    "X-Amz-Security-Token=%s",
    "X-Amz-Credential=ASIAABCDEFGH%s",
    "https://ann:p@%s@proxy:3128/",
    "http://ann:a/b%s@proxy:3128",
    "proxy=ann:%s@proxy:3128",
    "HTTP_PROXY ann:%s@proxy:3128",
    "Proxy-Authorization: Basic %s",
    "ann:%s@proxy.corp.example:8080 refused",
    "aws_secret_access_key = %s",
    "aws_session_token=%s",
    '  "SecretAccessKey": "%s",',
    "obs_sk=%s",
    "--sk %s",
    "ak=ABC, sk=%s",
    "SecurityToken: %s",
    "HUAWEICLOUD_SDK_SK=%s",
    '    "auth": "%s"',
    '    "identitytoken": "%s"',
    ".dockerconfigjson: %s",
    '  "registrytoken" : "%s",',
    "_auth = %s",
    "//registry.example/:_authToken=%s",
    "_password=%s",
    "default login anonymous password %s",
    "  password %s",
    "\tlogin user password %s",
    "password\t%s",
    "wandb login %s",
    "wandb login --relogin %s",
    "curl -uann:%s https://x",
    "curl -u 'ann:%s' https://x",
    "wget --http-password=%s",
    "sshpass -p %s ssh x",
    "mysql -uroot -p%s db",
    "docker login -p %s x",
    "redis-cli -a %s",
    "key sk-proj-%s",
    "key sk-ant-api03-%s",
    "sk_live_%s",
    "vault hvs.%s",
    "SG.%s.x",
    "xapp-1-%s",
    "glrt-%s",
    "pat github_pat_%s",
    "dop_v1_%s",
    "AGE-SECRET-KEY-1%s",
    "tls.key: LS0tLS1CRUdJTiBSU0EgUFJJVkFURSBLRVk%s",
    "client-key-data: '%s'",
    "{client-key-data: %s}",
    'client-key-data: "%s"',
    "using the kubeconfig's client_key_data=%s",
    "HfFolder.save_token('%s')",
    'login(token="%s")',
    "Token is %s",
    "huggingface-cli login --token=%s",
    "HUGGING_FACE_HUB_TOKEN: %s",
    "HUGGINGFACEHUB_API_TOKEN=%s",
    "extraheader = AUTHORIZATION: basic %s",
    "basic auth %s",
    "password=<%s",
    "password: `%s",
    "passphrase for key: %s",
    "secret = {{%s",
    'private_key: "%s"',
    "echo %s | docker login --password-stdin x",
    "git clone https://%s@github.com/x.git",
    "https://oauth2:%s@gitlab.example/x",
    "index-url = https://__token__:%s@pypi.example/simple",
    "machine a login %s password b",
    "Set-Cookie: x=%s",
    "cookie=%s",
    "session_cookie: %s",
    "Bearer:%s",
    "bearer_token=%s",
    "X-Auth-Token: %s",
    "jwt=%s",
    "kubeadm join --token abcdef.%s",
    "PGPASSWORD=%s psql",
    "pwd=%s;",
    "SharedAccessKey=%s;",
    "sig=%s&se",
    "client_secret=%s",
    '"clientSecret":"%s"',
    "license key: %s",
)
# Several lines, in which each S3cret is one.
TEXTS = (
    "-----BEGIN RSA PRIVATE KEY-----\nMIIEowIBAAKCAQEA7S3cret+/abcdefghijklmnopqrstuvwx\nS3cretabcdef==\n"
    "-----END RSA PRIVATE KEY-----\nafter\n",
    "-----BEGIN PGP PRIVATE KEY BLOCK-----\n\nlQOYBGS3cretS3cretS3cret\n=S3cret\n"
    "-----END PGP PRIVATE KEY BLOCK-----\nafter\n",
    "[rank 0 npu:0 #5] -----BEGIN OPENSSH PRIVATE KEY-----\n[rank 0 npu:0 #6] b3BlbnNzaC1rZXktdjEAAAAAS3cret\n"
    "[rank 1 npu:1 #9] step after=2026-11-30T10:00:00Z\n[rank 0 npu:0 #7] S3cret==\n"
    "[rank 0 npu:0 #8] -----END OPENSSH PRIVATE KEY-----\n",
    '{"log":"-----BEGIN RSA PRIVATE KEY-----\\n"}\n{"log":"MIIEowIBAAKCAQEAS3cretabc\\n"}\n'
    '{"log":"-----END RSA PRIVATE KEY-----\\n"}\n{"log":"after"}\n',
    "expected -----BEGIN PRIVATE KEY----- in x.pem: S3cret\n[rank 0 npu:0 #9] after time=2026-11-30T10:00:00Z\n",
    "client-key-data: >-\n  S3cretLS0tLS1CR\n  S3creteHh4\nuser: after\n",
    "stringData:\n  password: |\n    S3cret one\n\n    S3cret two\n  user: after\n",
    "password:\n  S3cret-value\nuser: after\n",
    "machine api.wandb.ai\n  login after\n  password S3cret40hex\n",
    "machine github.com\nlogin S3cretghpabcdefgh1234\npassword S3cret\nafter\n",
    '"auths": {\n  "registry.example": {\n    "auth": "S3cretYW5uOmI="\n  }\n}\nafter\n',
    "[default]\naws_access_key_id = AKIAS3CRETS3CRETABCD\naws_secret_access_key = S3cretabc/+\nafter\n",
    "env:\n- name: MY_TOKEN\n  value: S3cret-value\n- name: HOME\n  value: after\n",
    '  "name": "MY_TOKEN",\n  "value": "S3cret-value"\nafter\n',
    "args:\n- --hf-token\n- S3cret-value\n- --lr\n- after\n",
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
    'Error: secret "registry-login" not found',
    "docker-pullable://registry.example:5000/pnas@sha256:9f86d081884c7d659a2feaa0c55ad015",
    "image registry.example/pnas:0.1.0@sha256:9f86d081884c7d659a2feaa0c55ad015",
    "topologyKey: kubernetes.io/hostname",
    "PWD=/workspace OLDPWD=/",
    "http://10.0.0.1:6443/api?x=a@b",
)


def test_there_are_many_forms() -> None:
    assert len({*LINES, *LINES_OF_TOOLS}) >= 150


@pytest.mark.parametrize("seed", range(SEED, SEED + SEEDS))
def test_no_planted_secret_is_left(seed: int) -> None:
    chance = random.Random(seed)
    login = '/+"' + "".join(chance.choices(LETTERS + "/+ ", k=31))
    redactor = Redactor([login])
    planted, lines = [], []
    for line in (*LINES, *LINES_OF_TOOLS):
        secret = "".join(chance.choices(LETTERS, k=chance.randrange(12, 60))) + "7"
        planted.append(secret)
        text = line.replace("KNOWN64", base64.b64encode(f"user:{login}@".encode()).decode())
        text = text.replace("KNOWNURL", quote(login, safe="")).replace("KNOWNJSON", json.dumps(login))
        lines.append(text.replace("KNOWN", login).replace("%s", secret))
    output = "".join(redactor.lines(f"{line}\n" for line in lines))
    left = [line for line, secret in zip((*LINES, *LINES_OF_TOOLS), planted, strict=True) if secret in output]
    assert left == []
    for form in (login, quote(login, safe=""), json.dumps(login)[1:-1], base64.b64encode(login.encode()).decode()[:20]):
        assert form not in output
    assert output.count("\n") == len(planted), "each line stays one"
    assert redactor.hidden >= len(planted)


@pytest.mark.parametrize("text", TEXTS)
def test_a_secret_over_several_lines_is_hidden_and_the_lines_around_it_stay(text: str) -> None:
    output = Redactor().text(text)
    assert "S3C" not in output.upper()
    assert "after" in output
    assert output.count("\n") == text.count("\n")


@pytest.mark.parametrize("line", KEPT)
def test_a_line_without_a_secret_stays_as_it_is(line: str) -> None:
    assert Redactor().text(line) == line


@pytest.mark.parametrize("part", ["a.", "aZ9", 'token "', "@ a:b/", '\\"key', "basic "])
def test_a_line_of_a_megabyte_is_read_once(part: str) -> None:
    """A pattern that begins at every character would need hours."""
    line = "key " + part * (1_000_000 // len(part))
    assert Redactor().text(f"{line}\nafter\n").endswith("\nafter\n")


def test_a_secret_object_loses_all_its_data() -> None:
    assert Redactor().value({"kind": "Secret", "data": {"a": "b"}, "type": "x"}) == {
        "kind": "Secret",
        "data": HIDDEN,
        "type": "x",
    }


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


@pytest.mark.parametrize(
    ("line", "clean"),
    [
        ("10.1.2.3", HIDDEN),
        ("(10.1.2.3): refused.", f"({HIDDEN}): refused."),
        ("at 10.1.2.3.", f"at {HIDDEN}."),
        ("tcp://10.1.2.3:29500,10.1.2.0/24", f"tcp://{HIDDEN}:29500,{HIDDEN}/24"),
        ("node-10.1.2.3.nip.io", f"node-{HIDDEN}.nip.io"),
        ("HCCL_IF_IP=2001:db8::5 and ::ffff:10.1.2.3", f"HCCL_IF_IP={HIDDEN} and {HIDDEN}"),
        ("fe80::1%eth0 [2001:db8:0:0:0:0:0:1]:80", f"{HIDDEN}%eth0 [{HIDDEN}]:80"),
        ("addr:fd00::1 inet6:2001:db8::7 host:fd00::1:29500", f"addr:{HIDDEN} inet6:{HIDDEN} host:{HIDDEN}:29500"),
        ("worker.10.1.2.3", f"worker.{HIDDEN}"),
        ("fd00::1: lost; fd00::2", f"{HIDDEN}: lost; {HIDDEN}"),
        ('{"address": "10.1.2.3"}', f'{{"address": "{HIDDEN}"}}'),
    ],
)
def test_addresses_are_hidden_on_request(line: str, clean: str) -> None:
    assert Redactor(versions=()).text(line) == clean
    assert Redactor().text(line) == line


@pytest.mark.parametrize(
    "line",
    [
        "127.0.0.1:29500 ::1 0.0.0.0 [::]:80",
        "CANN 8.0.0.1, driver version 24.1.0.3, V7.5.0.1, version=7.5.0.1.129 2.9.0.post2",
        "2026-12-01T00:15:42Z 12:30:45 0000:C1:00.0 c10::Error at::native::add std::vector pci:0000:c1:00 at:12:30:45",
        "1.2.3 1.2.3.4.5 300.1.2.3 a::b::c::d::e::f::g::h::i",
    ],
)
def test_what_only_looks_like_an_address_stays(line: str) -> None:
    assert Redactor(versions=("8.0.0.1",)).text(line) == line


@pytest.mark.parametrize("part", ["1.", "1:", "::", "fd00:", "1.1.1.1 ", "g", "a", "g:", "ag:: "])
def test_a_long_line_is_searched_once_for_addresses(part: str) -> None:
    line = part * (1_000_000 // len(part))
    assert Redactor(versions=()).text(f"{line}\nafter\n").endswith("\nafter\n")
