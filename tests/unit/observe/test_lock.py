import os
import signal
import subprocess
import sys

import pytest

from rlflow.errors import UserError
from rlflow.observe.run_dir import RunDirectory

HOLDER = """
import sys, time
from rlflow.observe.run_dir import RunDirectory
with RunDirectory(sys.argv[1]).lock():
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_driver_is_refused_by_name_until_the_first_is_gone(tmp_path):
    run = RunDirectory(tmp_path / "run")
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(run.path)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(UserError) as caught, run.lock():
            pass
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    assert f"process {holder.pid} on" in str(caught.value)
    assert "run.name" in str(caught.value) and "\n" not in str(caught.value)
    with run.lock():
        assert str(os.getpid()) in (run.path / ".lock").read_text()


def test_the_lock_is_free_again_after_the_block(tmp_path):
    run = RunDirectory(tmp_path / "run")
    for _ in range(2):
        with run.lock():
            pass
