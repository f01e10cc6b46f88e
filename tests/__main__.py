"""`make test`: every test, in two pytests side by side. Prints the one as it goes, and then the report of the other.

The tests that share a cluster wait most of their time, for pods to start and to end; all others compute meanwhile.
Options for pytest come by PYTEST_ADDOPTS.
"""

import shutil
import subprocess
import sys
import tempfile

CLUSTER = ("tests/cluster",)
ALL_OTHERS = ("tests/unit", "tests/local")


def main() -> int:
    """Run them; 0 if all have passed."""
    pytest = [sys.executable, "-m", "pytest"]
    with tempfile.TemporaryFile() as report:
        print(f"{' and '.join(ALL_OTHERS)} run at the same time; their report comes at the end", flush=True)
        others = subprocess.Popen([*pytest, *ALL_OTHERS], stdout=report, stderr=subprocess.STDOUT)
        try:
            codes = [subprocess.run([*pytest, *CLUSTER], check=False).returncode, others.wait()]
        finally:
            others.kill()
            report.seek(0)
            shutil.copyfileobj(report, sys.stdout.buffer)
    return max(map(abs, codes))


if __name__ == "__main__":
    sys.exit(main())
