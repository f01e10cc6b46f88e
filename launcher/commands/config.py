"""`config show`: the settings that submit would use."""

from typing import Annotated, Any

from cyclopts import App

from launcher.commands.parameters import JsonFlag, Profile, examples, flag
from launcher.commands.prepare import resolve_job
from launcher.commands.printing import note, print_json
from launcher.commands.settings import takes_settings
from launcher.errors import RequestError, UnreachableError
from launcher.local.jobs import LocalJobs
from launcher.local.submitter import LocalSubmitter
from launcher.output import config_report
from launcher.settings.options import JobOptions
from launcher.submitters import Submitter, choose_submitter

config = App(name="config", help="Look at settings.", help_epilogue="", version_flags=[], group_parameters="Options")


@config.command(
    name="show",
    help_epilogue=examples(
        "config show", "config show --mode performance --profile recommended", "config show --yaml > mine.yaml"
    ),
)
@takes_settings(shown=frozenset())
def config_show(
    *,
    profile: Profile = None,
    yaml: Annotated[bool, flag("Print a profile: what is set, and the rest as comments.")] = False,
    json_: JsonFlag = False,
    **options: Any,
) -> None:
    """Print the settings that submit would use, and where each comes from.

    It takes the options of submit (`submit --help`). What --yaml and --json print can be read again by --profile.
    Precedence: flag > environment (PNAS_<SETTING>) > profile > cluster defaults > mode or hardware preset > default.
    """
    if yaml and json_:
        raise RequestError("--yaml and --json contradict each other; choose one")
    settings, *_ = resolve_job(options, profile, _choose_or_local)
    if json_:
        print_json(config_report.settings_document(settings))
    elif yaml:
        print(config_report.settings_yaml(settings), end="")
    else:
        print(config_report.settings_text(settings))


def _choose_or_local(options: JobOptions) -> tuple[Submitter, str]:
    """Choose the backend; without an answer from the cluster, show what is known here."""
    try:
        return choose_submitter(options)
    except UnreachableError as error:
        if options.backend != "auto":
            raise
        note(f"the cluster's defaults are not in it: {error}")
        return LocalSubmitter(LocalJobs()), ""
