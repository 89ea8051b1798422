"""All measures, one after the other, and one last line: ``python -m bench``, or ``make bench``."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
GOALS = re.compile(r"^goals: (\d+) of (\d+) met(?:; missed: (.*))?$", re.MULTILINE)


def main() -> int:
    """Run them; exit status 1 for one that broke, and for a missed goal with STRICT=1."""
    met = goals = 0
    missed: list[str] = []
    for name, *options in (("calls", "--counted"), ("costs",), ("pick",)):
        run = subprocess.run(
            [sys.executable, str(HERE / f"{name}.py"), *options],
            stdout=subprocess.PIPE,
            text=True,
            check=False,
            env=os.environ | {"STRICT": ""},
        )
        print(GOALS.sub("", run.stdout).rstrip(), end="\n\n", flush=True)
        if run.returncode:
            print(f"bench/{name}.py ended with status {run.returncode}")
            return 1
        for found in GOALS.finditer(run.stdout):
            met += int(found[1])
            goals += int(found[2])
            missed += [found[3]] if found[3] else []
    print(f"goals: {met} of {goals} met{'; missed: ' + ', '.join(missed) if missed else ''}")
    return 1 if missed and os.environ.get("STRICT") == "1" else 0


if __name__ == "__main__":
    sys.exit(main())
