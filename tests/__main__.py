"""`make test`: every test, in two pytests side by side. Prints the one as it goes, and then the report of the other.

The tests that share a cluster wait most of their time, for pods to start and to end; all others compute meanwhile.
Options for both come by PYTEST_ADDOPTS.
"""

import shutil
import subprocess
import sys
import tempfile

ON_A_CLUSTER = ("tests/cluster",)
ALL_OTHERS = ("tests/unit", "tests/local")
INTERRUPTED = 130


def main() -> int:
    """Run them; 0 if all have passed."""
    pytest = [sys.executable, "-m", "pytest", "--durations=20"]
    with tempfile.TemporaryFile() as report:
        sys.stdout.write(f"{' and '.join(ALL_OTHERS)} run at the same time; their report comes at the end\n")
        sys.stdout.flush()
        others = subprocess.Popen([*pytest, *ALL_OTHERS], stdout=report, stderr=subprocess.STDOUT)
        try:
            codes = [subprocess.run([*pytest, *ON_A_CLUSTER], check=False).returncode, others.wait()]
        except KeyboardInterrupt:
            # Ctrl-C reaches both, which clean up; to be waited for.
            others.wait()
            codes = [INTERRUPTED]
        finally:
            others.kill()
            report.seek(0)
            shutil.copyfileobj(report, sys.stdout.buffer)
            sys.stdout.flush()
    return max(map(abs, codes))


if __name__ == "__main__":
    sys.exit(main())
