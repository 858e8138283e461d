"""Threads of the server share few pools of memory."""

import platform
import subprocess
import sys

import pytest

COUNT = """
import ctypes, sys, tempfile, threading
from mmecg_server.memory import bound_arenas
assert not int(sys.argv[1]) or bound_arenas()
together = threading.Barrier(16)
def allocate():
    together.wait()
    blocks = [bytes(2000) for _ in range(200)]
    together.wait()
threads = [threading.Thread(target=allocate) for _ in range(16)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
libc = ctypes.CDLL(None)
libc.fopen.restype = ctypes.c_void_p
with tempfile.NamedTemporaryFile() as file:
    stream = ctypes.c_void_p(libc.fopen(file.name.encode(), b"w"))
    libc.malloc_info(0, stream)
    libc.fclose(stream)
    print(file.read().count(b"<heap nr="))
"""


def arenas(bound):
    command = [sys.executable, "-c", COUNT, str(int(bound))]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


GAPS = """
from pathlib import Path
from mmecg_server.memory import give_back
def resident():
    return int(Path("/proc/self/statm").read_text().split()[1])
blocks = [bytes(3000) for _ in range(20_000)]
kept = blocks[::50]
del blocks
before = resident()
assert give_back()
print(before - resident())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="pools of memory are glibc's")
def test_pages_between_others_are_given_back():
    freed = subprocess.run([sys.executable, "-c", GAPS], capture_output=True, text=True, check=True).stdout
    assert int(freed) > 5_000  # of about 14,600 pages


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="pools of memory are glibc's")
def test_threads_share_two_pools_of_memory():
    assert arenas(bound=True) <= 2 < arenas(bound=False)
