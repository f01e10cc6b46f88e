"""`config show`: the settings that submit would use."""

from typing import Any

from cyclopts import App

from launcher.app import SETTINGS, app
from launcher.commands.parameters import Json, Profile, examples
from launcher.commands.printing import note, print_json
from launcher.output import report

config = App(name="config", help="Look at settings.", group=SETTINGS, help_epilogue="", version_flags=[])
app.command(config)


@config.command(
    name="show", help_epilogue=examples("config show", "config show --mode performance --profile recommended")
)
def config_show(*, profile: Profile = None, json_: Json = False, **options: Any) -> None:
    """Print the settings that submit would use, and where each comes from.

    Precedence: flag > environment (PNAS_<SETTING>) > profile > cluster defaults > mode or hardware preset > default.
    """
    from launcher.commands.prepare import settings_of  # noqa: PLC0415  # pydantic

    settings, away = settings_of(options, profile)
    if away:
        note(away)
    if json_:
        print_json(report.settings_document(settings))
    else:
        print(report.settings_text(settings))
