"""`doctor`: say what of a namespace is ready for a job, and what is missing."""

from typing import Any

from launcher.commands.parameters import JsonFlag, Profile
from launcher.commands.prepare import resolve_job
from launcher.commands.printing import print_json
from launcher.commands.settings import takes_settings
from launcher.errors import PreflightError
from launcher.output import report


@takes_settings
def doctor(*, profile: Profile = None, json_: JsonFlag = False, **options: Any) -> None:
    """Check whether a job could run: your rights, the image, both claims, and enough NPUs.

    It takes the options of submit and starts nothing. If something is missing it ends with 5.
    """
    settings, submitter, _ = resolve_job(options, profile)
    findings = []
    for finding in submitter.examine(settings):
        findings.append(finding)
        if not json_:
            print(f"{finding.state:<8} {finding.about:<18} {finding.text}", flush=True)
    missing = [finding.about for finding in findings if finding.state == "missing"]
    if json_:
        print_json(report.findings_document(findings))
    if missing:
        raise PreflightError(f"not ready for this job: {', '.join(missing)}; the lines above say what to do")
