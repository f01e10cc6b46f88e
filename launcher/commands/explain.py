"""`explain`: say why a job waits or failed, what proves it, and what to do next."""

import time

from launcher.commands.common import job_named
from launcher.commands.parameters import ANYWHERE, JsonFlag, LatestName, Where
from launcher.commands.printing import print_json
from launcher.output.explanation import explanation_document, explanation_text


def explain_(name: LatestName = None, /, *, json_: JsonFlag = False, where: Where = ANYWHERE) -> None:
    """Say why a job waits or failed, what proves it, and what to do next.

    The most likely cause comes first. It looks at the job, its pods and events, at nodes, queues, quotas and claims, at
    the pods that hold the devices, and at the log. It ends with 0 whatever it finds.
    """
    jobs, ref = job_named(name, where)
    explanation = jobs.explain(ref)
    if json_:
        print_json(explanation_document(explanation))
    else:
        print(explanation_text(explanation, now=time.time(), where=where.words))
