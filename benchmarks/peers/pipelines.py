"The pipelines of scikit-learn that `estimators.py` serves: here and by the peers."
from sklearn.ensemble import RandomForestClassifier
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

PIPELINES = {"logistic": lambda: make_pipeline(SimpleImputer(), StandardScaler(), LogisticRegression()),
             "forest": lambda: make_pipeline(SimpleImputer(), RandomForestClassifier(
                 50, max_depth=8, random_state=0, n_jobs=1))}
