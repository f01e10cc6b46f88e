"""`doctor`: say what of a namespace is ready for a job, and what is missing."""

from typing import Any

from launcher.app import RUN, app
from launcher.commands.parameters import Json, Profile, examples
from launcher.commands.printing import print_json
from launcher.errors import PreflightError
from launcher.output import report


@app.command(group=RUN, help_epilogue=examples("doctor", "doctor --namespace training --npus 8"))
def doctor(*, profile: Profile = None, json_: Json = False, **options: Any) -> None:
    """Check whether a job could run: your rights, the image, both claims, nodes with so many NPUs. It starts nothing.

    It takes the options of submit. If something is missing it ends with 5.
    """
    from launcher.commands.prepare import findings_of  # noqa: PLC0415  # pydantic

    found = []
    for one in findings_of(options, profile):
        found.append(one)
        if not json_:
            print(f"{one.state:<8} {one.about:<18} {one.text}", flush=True)
    missing = [one.about for one in found if one.state == "missing"]
    if json_:
        print_json(report.findings_document(found))
    if missing:
        raise PreflightError(f"not ready for this job: {', '.join(missing)}; what to do is said above")
