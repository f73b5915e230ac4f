"""What is known of the dependencies that users install: `python -m rig.audit FILE`.

pip-audit asks a service on the internet. Where that cannot be reached nothing is known, and that is
said and fails nothing: a check must work on a train. Only a vulnerability that is known fails.
"""

import json
import subprocess
import sys
from typing import Any

SECONDS = 60


def audit(file: str) -> tuple[int, str]:
    """The exit code, and what there is to say."""
    options = ["--no-deps", "--disable-pip", "--timeout", "5", "--progress-spinner", "off"]
    command = [sys.executable, "-m", "pip_audit", "--requirement", file, "--format", "json"]
    try:
        done = subprocess.run(
            [*command, *options], capture_output=True, text=True, check=False, timeout=SECONDS
        )
        return judge(json.loads(done.stdout))
    except (subprocess.TimeoutExpired, ValueError):
        return 0, "Dependencies: not audited, since the service that knows cannot be reached"


def judge(report: dict[str, Any]) -> tuple[int, str]:
    """The same, of what pip-audit reports."""
    known = [each for each in report["dependencies"] if "skip_reason" not in each]
    wrong = [
        f"{each['name']} {each['version']}: {vulnerability['id']}"
        f" (fixed in {', '.join(vulnerability['fix_versions']) or 'no version'})"
        for each in known
        for vulnerability in each["vulns"]
    ]
    if wrong:
        return 1, "\n".join(["Dependencies with known vulnerabilities:", *wrong])
    unknown = len(report["dependencies"]) - len(known)
    return 0, (
        f"Dependencies: no vulnerability is known of {len(known)}; {unknown} could not be audited"
    )


if __name__ == "__main__":
    code, sentence = audit(sys.argv[1])
    print(sentence)
    sys.exit(code)
