"MLflow: the model as its LightGBM flavour saves it; `mlflow models serve` does the rest."
import lightgbm
import mlflow

mlflow.lightgbm.save_model(lightgbm.Booster(model_file="model.txt"), "saved")
