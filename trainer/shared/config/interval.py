"""How often something is done: every so many steps, or every so many seconds."""

from dataclasses import dataclass

from trainer.shared.durations import seconds


@dataclass(frozen=True)
class Interval:
    """Exactly one of the two is set."""

    steps: int | None = None
    seconds: float | None = None

    @classmethod
    def parse(cls, text: str) -> "Interval":
        """`500` is 500 steps, `10m` ten minutes.

        Raises:
            ValueError: it is neither, or none at all.
        """
        if text.strip().isdigit():
            interval = cls(steps=int(text))
        else:
            try:
                interval = cls(seconds=seconds(text) if not text.strip()[-1:].isdigit() else None)
            except ValueError:
                raise ValueError("write a number of steps (500) or a duration with its unit (10m)") from None
        if not (interval.steps or interval.seconds):
            raise ValueError("must be more than nothing; write a number of steps (500) or a duration (10m)")
        return interval
