"""`doctor`: say what of a namespace, or of this machine, is ready for a job, and what is missing."""

from typing import Any

from launcher.commands.parameters import JsonFlag, Profile
from launcher.commands.prepare import resolve_job
from launcher.commands.printing import note, print_json
from launcher.commands.settings import takes_settings
from launcher.errors import PreflightError
from launcher.output import report
from trainer.shared.text import visible

_SHOWN = frozenset(
    (
        *("backend", "kubeconfig", "context", "namespace", "queue", "priority_class", "node_selector", "toleration"),
        *("image", "image_pull_secret", "data_claim", "output_claim", "hardware", "cpu", "memory", "overlay"),
        *("mode", "device", "npus", "nodes", "data_path", "output", "weights"),
    )
)


@takes_settings(shown=_SHOWN)
def doctor(*, profile: Profile = None, json_: JsonFlag = False, **options: Any) -> None:
    """Check whether a job could run: rights, quotas, claims, image, queue, scheduler and enough healthy NPUs.

    It takes every option of submit, asks the same questions as submit and more, and starts nothing. It ends with 5 if
    something is missing, or if a job would wait. It never says ok for what it cannot check.
    """
    settings, submitter, reason = resolve_job(options, profile)
    if reason:
        note(reason)
    findings = []
    for finding in submitter.examine(settings):
        findings.append(finding)
        if not json_:
            print(visible(f"{finding.state:<8} {finding.about:<18} {finding.text}"), flush=True)
    if json_:
        print_json(report.findings_document(findings))
    if faults := [finding.about for finding in findings if finding.state in ("missing", "later")]:
        error = PreflightError(f"not ready for this job: {', '.join(faults)}; the lines above say what to do")
        raise error.after_document(json_)
