"""docs/options.md describes every option of the code."""

from docs.options import PAGE, page
from trainer.shared.config import TrainConfig
from trainer.shared.config.layers import flag_name


def test_the_page_is_not_stale() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "write it again: python -m docs.options"


def test_every_option_has_its_row() -> None:
    rows = page().splitlines()
    for name, field in TrainConfig.model_fields.items():
        [row] = [row for row in rows if row.startswith(f"| `{flag_name(name)}` |")]
        assert (field.description or "").partition(" [default")[0] in row
    assert "| `--lr` | float > 0 | 0.4 | Peak learning rate" in page()
    assert "| `--threads` | int ≥ 1 | OMP_NUM_THREADS, or the CPUs divided by the devices | CPU threads" in page()
