"How much memory a command takes."
import subprocess
import sys

# A process starts with the peak of the one that started it (getrusage(2): it is kept over execve), and a worker of
# pytest may have had
# much; so a small Python of its own starts the command and asks for the peak of its children.
_WATCH = """
import resource, subprocess, sys
done = subprocess.run(sys.argv[1:], stdout=2)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(done.returncode)
"""


def peak_mib(*command, **how):
    "MiB at the most of a command that has to succeed."
    done = subprocess.run([sys.executable, "-c", _WATCH, *map(str, command)], capture_output=True, text=True,
                          timeout=300, **how)
    assert done.returncode == 0, done.stderr
    return int(done.stdout) / (2**20 if sys.platform == "darwin" else 1024)
