"""Makes the environment of `make test-clients`: Triton's and KServe's clients of gRPC, alone, because both want a
protobuf that is older than the pinned one."""
import subprocess
import sys
import venv
from pathlib import Path

CLIENTS = "tritonclient[grpc]==2.73.0", "kserve==0.21.0"


def make(folder):
    venv.create(folder, clear=True, with_pip=True)
    subprocess.run([folder / "bin/python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *CLIENTS],
                   check=True)


if __name__ == "__main__": make(Path(sys.argv[1]).absolute())
