"""A real `windlass serve`, on a free port, for as long as a test."""

import os
import re
import signal
import subprocess
import threading
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WINDLASS = Path(os.environ.get("WINDLASS", ROOT / "target/debug/windlass"))


@pytest.fixture
def server(tmp_path):
    """The server's URL. It must be there until the end, end when told to, and have had no panic."""
    command = [WINDLASS, "serve", "--listen", "127.0.0.1:0", "--data-dir", tmp_path / "data"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        said = []
        for line in process.stderr:
            said.append(line)
            if serving := re.search(r"(http://[\d.:]+)/NAMESPACE", line):
                break
        else:
            pytest.fail(f"the server does not start: {said}")
        reader = threading.Thread(target=lambda: said.extend(process.stderr))
        reader.start()
        yield serving[1]
        assert process.poll() is None, said
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0, said
        reader.join()
        assert "panicked" not in "".join(said), said
