"""Starts programs in turn and tells how long each took and how much memory: python launch.py ROUNDS < {name: [command, environment]}

Out: {name: [[seconds to the first line of its output, seconds to its end, MiB, output], ...]}, as JSON. A small process of its own, since
what a child is said to have needed is never less than what its parent holds.
"""

import json
import os
import subprocess
import sys
import time


def run(command, environment):
    started = time.perf_counter()
    # Compiled modules are kept for all alike: who is installed has them already, who runs from a checkout may not.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"} | environment
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment)
    output = process.stdout.readline()
    first = time.perf_counter() - started
    output += process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    unit = 2**20 if sys.platform == "darwin" else 2**10
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    return first, time.perf_counter() - started, usage.ru_maxrss / unit, output.decode()


if __name__ == "__main__":
    programs = json.load(sys.stdin)
    found = {name: [] for name in programs}
    for _ in range(int(sys.argv[1])):
        for name, program in programs.items():
            found[name].append(run(*program))
    json.dump(found, sys.stdout)
