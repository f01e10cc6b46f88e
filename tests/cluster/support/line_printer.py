"""An image whose program prints numbered lines as the trainer does, at a given rate, and ends as it is told to."""

from pathlib import Path
from typing import Any

from tests.cluster.testbed.artifacts import images
from tests.cluster.testbed.cluster import Cluster

IMAGE = "localhost/printer:1"
FOLDER = "/state"
# Arguments: how many lines, how many per second (0: as fast as it can), how wide their text, what to exit with, and a
# file that says that it has run before: then it tells so, and succeeds. SIGTERM makes it say its last words.
PRINTER_C = r"""
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
static volatile sig_atomic_t told = 0;
static void tell(int number) { (void)number; told = 1; }
int main(int count, char **words) {
  long lines = atol(words[1]), rate = atol(words[2]);
  int width = atoi(words[3]), code = atoi(words[4]);
  FILE *before = count > 5 ? fopen(words[5], "r") : 0;
  if (before) printf("run before\n");
  signal(SIGTERM, tell);
  struct timespec next;
  clock_gettime(CLOCK_MONOTONIC, &next);
  for (long i = 1; i <= lines && !told; i++) {
    printf("[rank 0 cpu:0 #%ld] %-*ld\n", i, width, i);
    if (!rate) continue;
    fflush(stdout);
    next.tv_nsec += 1000000000 / rate;
    if (next.tv_nsec >= 1000000000) { next.tv_nsec -= 1000000000; next.tv_sec += 1; }
    clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &next, 0);
  }
  if (told) printf("last words\n");
  fflush(stdout);
  if (before) return 0;
  if (count > 5) fclose(fopen(words[5], "w"));
  return code;
}
"""


def load(cluster: Cluster, folder: Path) -> None:
    """Make the image in `folder`, and give it to every node."""
    cluster.load(images.compiled(folder, IMAGE, PRINTER_C))


def pod(namespace: str, name: str, *words: object, restart: str = "Never") -> dict[str, Any]:
    """One that prints by these arguments; what is in `FOLDER` outlives its container."""
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
