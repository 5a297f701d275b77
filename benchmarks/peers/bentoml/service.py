"BentoML: one service, one LightGBM model, as its documentation writes them."
import bentoml
import lightgbm
import numpy as np


@bentoml.service(workers=1)
class Model:
    def __init__(self): self.model = lightgbm.Booster(model_file="model.txt")

    @bentoml.api
    def predict(self, data: np.ndarray) -> np.ndarray: return self.model.predict(data, num_threads=1)
