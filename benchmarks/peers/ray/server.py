"Ray Serve: one deployment, one LightGBM model, as its documentation writes them."
import time

import lightgbm
import numpy as np
from ray import serve
from starlette.requests import Request


@serve.deployment(num_replicas=1, max_ongoing_requests=128)
class Model:
    def __init__(self, file): self.model = lightgbm.Booster(model_file=file)

    async def __call__(self, request: Request):
        body = await request.json()
        return {"output": self.model.predict(np.array(body["data"], np.float64), num_threads=1).tolist()}


if __name__ == "__main__":
    import os

    import ray
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=200 * 2**20)
    serve.start(http_options={"host": "127.0.0.1", "port": 18081})
    serve.run(Model.bind(os.path.abspath("model.txt")), name="model", route_prefix="/")
    while True: time.sleep(1)
