"""`config show`: the settings that submit would use."""

from typing import Any

from cyclopts import App

from launcher.commands.parameters import JsonFlag, Profile, examples
from launcher.commands.prepare import settings_for_display
from launcher.commands.printing import note, print_json
from launcher.commands.settings import takes_settings
from launcher.output import report

config = App(name="config", help="Look at settings.", help_epilogue="", version_flags=[])


@config.command(
    name="show", help_epilogue=examples("config show", "config show --mode performance --profile recommended")
)
@takes_settings
def config_show(*, profile: Profile = None, json_: JsonFlag = False, **options: Any) -> None:
    """Print the settings that submit would use, and where each comes from.

    Precedence: flag > environment (PNAS_<SETTING>) > profile > cluster defaults > mode or hardware preset > default.
    """
    settings, missing_defaults = settings_for_display(options, profile)
    if missing_defaults:
        note(missing_defaults)
    if json_:
        print_json(report.settings_document(settings))
    else:
        print(report.settings_text(settings))
