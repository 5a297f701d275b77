"BentoML: one service, one pipeline of scikit-learn, as its documentation writes them."
import bentoml
import joblib
import numpy as np


@bentoml.service(workers=1)
class Model:
    def __init__(self): self.model = joblib.load("model.joblib")

    @bentoml.api
    def predict(self, data: np.ndarray) -> np.ndarray: return self.model.predict_proba(data)
