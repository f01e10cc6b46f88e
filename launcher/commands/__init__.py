"""The commands of `python -m launcher`: modules in this folder, each imported when a user types its command.

A command is short: resolve, ask the backend, print. The table below is all that the command line and its first help
page need to know of a command before that.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class CommandEntry:
    """One command.

    Attributes:
        group: the heading under which help shows it.
        target: the module in this folder and the function in it.
        summary: the first sentence of the function's docstring.
        examples: what users type after `python -m launcher`.
    """

    name: str
    group: str
    target: str
    summary: str
    examples: tuple[str, ...] = ()


COMMANDS = (
    CommandEntry(
        "submit",
        "Run",
        "submit:submit",
        "Start a training job and follow it to its end.",
        (
            "submit --npus 8 --mode full --data-path /data/imagenet",
            "submit --npus 2 --mode performance --steps 100 --detach",
            "submit --npus 8 --profile recommended --name ladder-a",
            "submit --name ladder-a --resume auto",
        ),
    ),
    CommandEntry(
        "render",
        "Run",
        "render:render",
        "Print the manifests that submit would create, as YAML for kubectl; without a cluster.",
        ("render --npus 8 --image registry.example/pnas:0.1.0",),
    ),
    CommandEntry(
        "doctor",
        "Run",
        "doctor:doctor",
        "Check whether a job could run: rights, quotas, claims, image, queue, scheduler and enough healthy NPUs.",
        ("doctor", "doctor --namespace training --npus 8", "doctor --backend local --data-path data", "submit --help"),
    ),
    CommandEntry(
        "list",
        "Watch",
        "watch:list_",
        "Show all jobs, the latest last.",
        ("list", "list --json"),
    ),
    CommandEntry(
        "top",
        "Watch",
        "top:top",
        "Show the live jobs with their devices, again and again.",
        ("top", "top NAME"),
    ),
    CommandEntry(
        "logs",
        "Watch",
        "watch:logs",
        "Show a job's log, and say so if a line is missing.",
        ("logs", "logs NAME -f", "logs --rank 3 --tail 20"),
    ),
    CommandEntry(
        "status",
        "Watch",
        "watch:status",
        "Say what a job is doing, how far it is, or how and why it ended.",
        ("status", "status NAME --json"),
    ),
    CommandEntry(
        "explain",
        "Watch",
        "explain:explain_",
        "Say why a job waits or failed, what proves it, and what to do next.",
        ("explain", "explain NAME", "explain NAME --json"),
    ),
    CommandEntry(
        "profile",
        "Watch",
        "profile:profile",
        "Profile steps of a running job, and show its largest operators.",
        ("profile", "profile NAME --steps 5 --rank 3"),
    ),
    CommandEntry(
        "wait",
        "Watch",
        "watch:wait",
        "Wait until a job has ended, and end with its exit code.",
        ("wait", "wait NAME --timeout 2h"),
    ),
    CommandEntry(
        "cancel",
        "Stop",
        "stop:cancel",
        "Ask a job to save its state and stop, and wait until it has.",
        ("cancel NAME", "cancel --release pnas"),
    ),
    CommandEntry(
        "recover",
        "Stop",
        "recover:recover",
        "Let a job go on whose pod cannot end, because its node is dead or cut off.",
        ("recover NAME",),
    ),
    CommandEntry(
        "delete",
        "Stop",
        "stop:delete",
        "Forget a job; the files in its output folder stay.",
        ("delete NAME", "delete NAME --force"),
    ),
    CommandEntry(
        "report",
        "Take home",
        "report:report",
        "Write one HTML page about a run, or about two that are compared.",
        ("report NAME", "report output/r1", "report A B --to compared.html"),
    ),
    CommandEntry(
        "fetch",
        "Take home",
        "fetch:fetch",
        "Copy a run's results, metrics and logs to this machine.",
        ("fetch NAME", "fetch NAME --to runs/first --checkpoints"),
    ),
    CommandEntry(
        "bundle",
        "Take home",
        "bundle:bundle",
        "Pack what tells of a job's faults into one archive, without secrets.",
        ("bundle NAME", "bundle NAME --to fault.tar.gz"),
    ),
    CommandEntry("config", "Settings", "config:config", "Look at settings."),
    CommandEntry(
        "completion",
        "Settings",
        "completion:completion",
        "Print a script that completes commands, options, their values and jobs' names.",
        (
            "completion bash > ~/.local/share/bash-completion/completions/pnas",
            "completion fish > ~/.config/fish/completions/pnas.fish",
        ),
    ),
)
