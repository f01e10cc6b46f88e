"""An image that prints lines as the trainer's supervisor does, and jobs that the launcher accepts as its own."""

import re
from pathlib import Path
from typing import Any

from tests.cluster.testbed.artifacts import images
from tests.cluster.testbed.cluster import Cluster

IMAGE = "localhost/fake-trainer:1"
# It prints numbered lines of one rank, and their count at the end.
PROGRAM_C = r"""
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
int main(int argc, char **argv) {
  long lines = atol(argv[1]), per_s = atol(argv[2]), width = atol(argv[3]);
  int code = argc > 4 ? atoi(argv[4]) : 0;
  char *pad = calloc(1, width + 1);
  memset(pad, 'x', width);
  setvbuf(stdout, 0, _IOLBF, 4096);
  struct timespec nap = {0, 10000000};
  for (long i = 1; i <= lines; i++) {
    printf("[rank 0 cpu:0 #%ld] step %s\n", i, pad);
    if (per_s && i % (per_s / 100 ? per_s / 100 : 1) == 0) nanosleep(&nap, 0);
  }
  printf("[node 0 #1] ended lines=\"0:%ld\"\n", lines);
  return code;
}
"""


def load_image(cluster: Cluster, folder: Path) -> None:
    """Build the image in `folder`, and load it on every node."""
    cluster.load(images.program_image(folder, IMAGE, PROGRAM_C))


def start_job(
    cluster: Cluster,
    namespace: str,
    name: str,
    *words: object,
    image: str = IMAGE,
    retries: int = 0,
    node: str | None = None,
    ttl_s: int | None = None,
) -> None:
    """Start a job. The words are the number of lines, lines per second (0: unlimited), their width, and the exit code.

    Args:
        image: another image, which has its own words.
        node: the only node on which the job can run.
        ttl_s: seconds after its end at which the cluster removes the job.
    """
    labels = {"pnas/job": name, "app.kubernetes.io/name": "pnas"}
    container = {
        "name": "trainer",
        "image": image,
        "imagePullPolicy": "Never",
        "args": [str(word) for word in words],
    }
    selector = {} if node is None else {"nodeSelector": {"kubernetes.io/hostname": node}}
    # As the first process of its container, the program ignores SIGTERM.
    pod_spec = {"restartPolicy": "Never", "terminationGracePeriodSeconds": 1, "containers": [container], **selector}
    pod = {"metadata": {"labels": labels}, "spec": pod_spec}
    spec: dict[str, Any] = {"backoffLimit": retries, "template": pod}
    spec |= {} if ttl_s is None else {"ttlSecondsAfterFinished": ttl_s}
    metadata = {"name": name, "namespace": namespace, "labels": labels}
    cluster.create({"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": spec})


def line_numbers(raw: str) -> list[int]:
    """Return the numbers of the lines in a raw log."""
    return [int(number) for number in re.findall(r"^\[rank 0 cpu:0 #(\d+)\]", raw, re.MULTILINE)]
