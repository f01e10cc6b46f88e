"""STAND-IN for vc-webhook-manager: an HTTPS server that the API server asks about Jobs and Queues."""

import base64
import json
import ssl
import sys
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from tests.cluster.testbed.api import ApiError
from tests.cluster.testbed.volcano.client import QUEUES, Client, Json, error_message, path
from tests.cluster.testbed.volcano.webhook import admission


def run(kubeconfig: Path, certificate: Path, key: Path, port: int) -> None:
    """Answer for ever, on 127.0.0.1."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            review = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            # Each request has a thread, and each thread needs a separate connection.
            with closing(Client(kubeconfig)) as client:
                response = answer(client, self.path.partition("?")[0], review["request"])
            body = json.dumps({"apiVersion": review["apiVersion"], "kind": "AdmissionReview", "response": response})
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body.encode())))
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the base class's name)
            sys.stderr.write(f"{format % args}\n")

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    server.serve_forever()


def answer(client: Client, url_path: str, request: Json) -> Json:
    """Return the response to one request; a request changes nothing, so a dry run gets the same response.

    Raises:
        ApiError: queues cannot be read.
    """
    response: Json = {"uid": request["uid"], "allowed": True}
    item = request["object"]
    if url_path.endswith("/mutate"):
        default = admission.defaulted_job if url_path == "/jobs/mutate" else admission.defaulted_queue
        operations = json.dumps(admission.patch(item, default(item))).encode()
        return response | {"patchType": "JSONPatch", "patch": base64.b64encode(operations).decode()}
    refusal = _refusal(client, url_path, request)
    if refusal:
        return response | {"allowed": False, "status": {"message": refusal}}
    return response


def _refusal(client: Client, url_path: str, request: Json) -> str:
    operation = request["operation"]
    if url_path == "/queues/validate":
        deleted = operation == "DELETE"
        return (
            admission.queue_deletion_refusal(request["name"]) if deleted else admission.queue_refusal(request["object"])
        )
    if operation == "UPDATE":
        return admission.update_refusal(request["oldObject"], request["object"])
    job = request["object"]
    # With `generateName`, the API server has chosen the name before this request.
    job["metadata"].setdefault("name", request.get("name", ""))
    queues = {queue["metadata"]["name"]: queue for queue in client.items(QUEUES)}
    tasks = enumerate(job["spec"].get("tasks") or ())
    templates = {number: _template_refusal(client, request["namespace"], number, task) for number, task in tasks}
    return admission.job_refusal(job, queues, templates)


def _template_refusal(client: Client, namespace: str, number: int, task: Json) -> str:
    """Return the API server's message on a pod template, by a dry run of a PodTemplate, which has the same rules."""
    body = {"metadata": {"name": "task"}, "template": task["template"]}
    try:
        client.create(path("podtemplates", namespace), body, dryRun="All")
    except ApiError as error:
        if error.status != 422:
            raise
        faults = error_message(error).partition(" is invalid: ")[2].strip("[]")
        return f"spec.task[{number}].{faults}. "
    return ""
