"An empty MLflow store that is ready: for each new one MLflow runs all its migrations, which takes seconds."
import atexit
import functools
import shutil
import tempfile
from pathlib import Path


@functools.cache
def _made():
    from mlflow import MlflowClient
    folder = Path(tempfile.mkdtemp(prefix="mlops-nb-store-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    MlflowClient(f"sqlite:///{folder / 'mlflow.db'}").search_experiments()
    return folder / "mlflow.db"


def ready_store(root):
    "Put it where a project has its store. That the first deployment makes one is seen in the project of `finished`."
    shutil.copy(_made(), root / "mlflow.db")
    return root
