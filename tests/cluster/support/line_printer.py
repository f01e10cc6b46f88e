"""An image whose program prints numbered lines as the trainer does, at a given rate, with a given exit code."""

from pathlib import Path
from typing import Any

from tests.cluster.testbed.artifacts import images
from tests.cluster.testbed.cluster import Cluster

IMAGE = "localhost/line-printer:1"
FOLDER = "/state"
# Arguments: the number of lines, lines per second (0: unlimited), the width of their text, the exit code, and a file
# that marks an earlier run. If the file exists, the program prints that it has run before, and succeeds. On SIGTERM the
# program prints its last words.
PROGRAM_C = r"""
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
static volatile sig_atomic_t stopping = 0;
static void stop(int number) { (void)number; stopping = 1; }
int main(int count, char **words) {
  long lines = atol(words[1]), rate = atol(words[2]);
  int width = atoi(words[3]), code = atoi(words[4]);
  FILE *before = count > 5 ? fopen(words[5], "r") : 0;
  if (before) printf("run before\n");
  signal(SIGTERM, stop);
  struct timespec next;
  clock_gettime(CLOCK_MONOTONIC, &next);
  for (long i = 1; i <= lines && !stopping; i++) {
    printf("[rank 0 cpu:0 #%ld] %-*ld\n", i, width, i);
    if (!rate) continue;
    fflush(stdout);
    next.tv_nsec += 1000000000 / rate;
    if (next.tv_nsec >= 1000000000) { next.tv_nsec -= 1000000000; next.tv_sec += 1; }
    clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &next, 0);
  }
  if (stopping) printf("last words\n");
  fflush(stdout);
  if (before) return 0;
  if (count > 5) fclose(fopen(words[5], "w"));
  return code;
}
"""


def load_image(cluster: Cluster, folder: Path) -> None:
    """Build the image in `folder`, and load it on every node."""
    cluster.load(images.program_image(folder, IMAGE, PROGRAM_C))


def pod(namespace: str, name: str, *words: object, restart: str = "Never") -> dict[str, Any]:
    """Return a pod that prints by these arguments; the files in `FOLDER` outlive its container."""
    container = {
        "name": "trainer",
        "image": IMAGE,
        "imagePullPolicy": "Never",
        "args": [str(word) for word in words],
        "volumeMounts": [{"name": "state", "mountPath": FOLDER}],
    }
    spec = {
        "containers": [container],
        "restartPolicy": restart,
        "terminationGracePeriodSeconds": 5,
        "volumes": [{"name": "state", "emptyDir": {}}],
    }
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": namespace, "name": name}, "spec": spec}
