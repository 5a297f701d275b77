"LitServe: one API, one LightGBM model, as its documentation writes them."
import lightgbm
import litserve
import numpy as np


class Api(litserve.LitAPI):
    def setup(self, device): self.model = lightgbm.Booster(model_file="model.txt")
    def decode_request(self, request): return np.array(request["data"], np.float64)
    def predict(self, x): return self.model.predict(x, num_threads=1)
    def encode_response(self, output): return {"output": output.tolist()}


if __name__ == "__main__":
    litserve.LitServer(Api(), accelerator="cpu", workers_per_device=1).run(host="127.0.0.1", port=18081,
                                                                           num_api_servers=1,
                                                                           generate_client_file=False,
                                                                           log_level="warning")
