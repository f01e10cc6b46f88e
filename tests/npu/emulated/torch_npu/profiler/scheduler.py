"""Which steps a profile records; the actions are torch's."""

from torch.profiler import ProfilerAction


class Schedule:
    """Skip, wait, warm up and record steps, and repeat that; with `repeat` 0 for ever."""

    def __init__(self, wait: int, active: int, warmup: int = 0, repeat: int = 0, skip_first: int = 0) -> None:
        self.wait = wait
        self.active = active
        self.warmup = warmup
        self.repeat = repeat
        self.skip_first = skip_first

    def __call__(self, step: int) -> ProfilerAction:
        round_steps = self.wait + self.warmup + self.active
        number, place = divmod(step - self.skip_first, round_steps)
        if number < 0 or (self.repeat and number >= self.repeat) or place < self.wait:
            return ProfilerAction.NONE
        if place < self.wait + self.warmup:
            return ProfilerAction.WARMUP
        return ProfilerAction.RECORD if place < round_steps - 1 else ProfilerAction.RECORD_AND_SAVE
