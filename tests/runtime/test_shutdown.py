"""A process ends in time after SIGTERM, and after its parent; each test starts a process of its own."""

import os
import subprocess
import sys
import time

from tiny_run import REPOSITORY

START = """
import hashlib, os, signal, subprocess, sys, threading, time
from pipeline.runtime import shutdown
from pipeline.runtime.interrupts import Terminated

shutdown.EXIT_WITHIN_S, shutdown.LOOK_EVERY_S = 0.5, 0.1
shutdown.handle_termination(lambda: os._exit(143), ends_with_parent="child" in sys.argv)

"""
RAISED = """
try:
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(60)
except Terminated:
    print("raised")
"""
# The signal arrives in a destructor, whose errors Python prints and drops.
DROPPED = """
class Deleted:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)
        print("not interrupted")

shutdown.EXIT_WITHIN_S = 30
try:
    Deleted()
    time.sleep(60)
except Terminated:
    print("raised")
"""
# The signal arrives in one long operation, after which alone Python would handle it.
STUCK = """
threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM)).start()
hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)
"""
SAVING = """
signal.signal(signal.SIGTERM, lambda *_: None)
with shutdown.finished_before_exit():
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(1.5)
    print("saved", flush=True)
time.sleep(60)
"""
# The parent ends as if it were killed; its child, which has its standard output, does not.
ORPHAN = """
if "child" not in sys.argv:
    subprocess.Popen([*sys.orig_argv, "child"], stderr=subprocess.PIPE).stderr.readline()
    os.kill(os.getpid(), signal.SIGKILL)
print("ready", file=sys.stderr, flush=True)
try:
    time.sleep(60)
except Terminated:
    print("raised")
"""


def run(body: str) -> tuple[int, str, float]:
    """Exit code, output and seconds of a process, until all that have its output have ended."""
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", START + body],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=50,
        check=False,
    )
    return done.returncode, done.stdout, time.monotonic() - started


def test_sigterm_raises_in_the_main_thread():
    code, output, _ = run(RAISED)
    assert (code, output) == (0, "raised\n")


def test_sigterm_that_python_drops_arrives_again_in_silence():
    code, output, elapsed_s = run(DROPPED)
    assert (code, output) == (0, "raised\n")
    assert elapsed_s < 30


def test_main_thread_that_does_not_end_is_ended():
    code, _, elapsed_s = run(STUCK)
    assert code == 143
    assert elapsed_s < 30


def test_what_is_being_saved_is_finished():
    code, output, _ = run(SAVING)
    assert (code, output) == (143, "saved\n")


def test_orphan_ends():
    code, output, _ = run(ORPHAN)
    assert (code, output) == (-9, "raised\n")
