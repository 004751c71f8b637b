"""What the server says of itself is true, and it does nothing else: schemathesis asks it a thousand times."""

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
# The same questions each time; another seed finds others.
SEED = os.environ.get("WINDLASS_SEED", "20261125")


def test_the_server_does_what_its_document_says(server, tmp_path):
    command = [
        Path(sys.executable).parent / "schemathesis", f"--config-file={HERE / 'schemathesis.toml'}",
        "run", f"{server}/openapi.json", "--checks=all", "--continue-on-failure", f"--seed={SEED}",
        "--phases=examples,coverage,fuzzing", "--max-examples=100", "--generation-database=none",
        "--request-timeout=10", "--no-color",
    ]  # fmt: skip
    environment = {**os.environ, "SCHEMATHESIS_HOOKS": "hooks", "PYTHONPATH": str(HERE)}
    ran = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    print(f"WINDLASS_SEED={SEED}\n{ran.stdout}")
    assert ran.returncode == 0, ran.stderr
