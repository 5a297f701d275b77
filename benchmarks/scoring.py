"Batch and single-row scoring against LightGBM."
import polars as pl
from common import THREADS, alternating, fewer_subscribers, fresh_copy, quick, report, row, run, seconds, workplace

from mlops_nb.batch.batch_scoring import score_files
from mlops_nb.model.booster import Booster
from mlops_nb.model.predictor import Predictor


def many_rows(project, least):
    "A Parquet file of at least so many rows: the accepted ones, again and again, each copy in another order."
    accepted = pl.read_parquet(project / "artifacts/accepted")
    frame = pl.concat([accepted.sample(fraction=1, shuffle=True, seed=i) for i in range(-(-least // len(accepted)))])
    frame.write_parquet(project / "rows.parquet", compression="zstd", row_group_size=131_072)
    return project / "rows.parquet", len(frame)


def larger(predictor, theirs, X, trees):
    "The same predictor with a model of so many trees, fitted to the scores of the first: only its speed counts."
    import lightgbm
    data = lightgbm.Dataset(X[:100_000], theirs.predict(X[:100_000], raw_score=True, num_threads=THREADS))
    params = dict(objective="regression", num_leaves=31, learning_rate=.02, num_threads=THREADS, verbosity=-1)
    text = lightgbm.train(params, data, trees).model_to_string()
    text = text.replace("objective=regression", "objective=binary sigmoid:1")
    changed = Predictor(predictor.schema, predictor.features, predictor.encoder, Booster(text), predictor.policy,
                        "larger", THREADS)
    return changed, lightgbm.Booster(model_str=text)


def one_by_one(predictor, theirs, frame, X, n):
    "Microseconds a row: our booster, LightGBM's, and our predictor with everything from a dict on."
    rows = frame.select(predictor.inputs).head(n).to_dicts()
    def booster():
        for x in X[:n]: predictor.model.predict_one(x)
    def lightgbm():
        for i in range(n): theirs.predict(X[i:i + 1], num_threads=1)
    def whole():
        for r in rows: predictor.predict_one(r)
    return [s / n * 1e6 for s in alternating(3, *(lambda f=f: seconds(f) for f in (booster, lightgbm, whole)))]


def main():
    import lightgbm
    small, times = quick(), 5
    with workplace() as tmp:
        (tmp / "p").mkdir()
        project = tmp / "p"
        fresh_copy(project)
        if small: fewer_subscribers(project, 800)
        run("mlops-nb", "simulate", cwd=project)
        run("dvc", "repro", "bundle", cwd=project)
        source, n = many_rows(project, 100_000 if small else 1_500_000)
        predictor = Predictor.open(project / "artifacts/bundle", THREADS)
        theirs = lightgbm.Booster(model_file=project / "artifacts/bundle/model.txt")
        trees = theirs.num_trees()
        frame = pl.read_parquet(source)
        X = predictor.encode_frame(frame)

        def afresh(model):
            (tmp / "scores.parquet").unlink(missing_ok=True)  # what is complete is not scored again
            return seconds(score_files, model, source, tmp / "scores.parquet")
        def ours(): return afresh(predictor)
        def predict(): return seconds(lambda: theirs.predict(X, num_threads=THREADS))
        def script():
            def f():
                p = theirs.predict(predictor.encoder.transform(pl.read_parquet(source).hstack(known)),
                                   num_threads=THREADS)
                pl.DataFrame(dict(score=p)).write_parquet(tmp / "script.parquet")
            return seconds(f)
        known = pl.DataFrame({k: pl.Series(v) for k, v in predictor.features.compute(frame).items()})
        ours(), predict()
        a, b, c = alternating(times, ours, predict, script)
        big, plain = larger(predictor, theirs, X, 60 if small else 300)
        d, e = alternating(times, lambda: afresh(big),
                           lambda: seconds(lambda: plain.predict(X, num_threads=THREADS)))
        alone, single, whole = one_by_one(predictor, theirs, frame, X, 200 if small else 2000)
    report([
        row("batch scoring, Parquet to Parquet, 300 trees", f"{n / d:,.0f} rows/s",
            "`lightgbm.Booster.predict` of a matrix in memory",
            f"{n / e:,.0f} rows/s", f"{e / d:.2f}×", "≥ 0.80×", e / d >= .8),
        row(f"… with the {trees} trees of the default project", f"{n / a:,.0f} rows/s",
            "`lightgbm.Booster.predict` of a matrix in memory",
            f"{n / b:,.0f} rows/s", f"{b / a:.2f}×", "≥ 0.80×", b / a >= .8),
        row("… the same", f"{n / a:,.0f} rows/s", "script: read all, encode, `Booster.predict`, write",
            f"{n / c:,.0f} rows/s", f"{c / a:.2f}×"),
        row("one row through the booster", f"{alone:.1f} µs", "`lightgbm.Booster.predict`", f"{single:.1f} µs",
            f"{single / alone:.1f}× faster"),
        row("one row through `Predictor.predict_one`, from a dict", f"{whole:.0f} µs"),
    ],
    [f"Scoring: {n:,} rows × {X.shape[1]} inputs of the simulated churn, {trees} trees, {THREADS} threads for both; "
     f"median of {times}, "
        "in turns. `serve.score.score` reads Parquet, validates, computes features, encodes, predicts, decides and "
        "writes in batches of "
        "65,536 rows. The first peer only predicts, from a matrix that is ready in memory: there is no harsher one. "
        "The second is given "
        "the features and holds all rows in memory.",
        "`predict_one` takes a dict of any values; the server's way, from checked columns, is among the figures of the "
        "server."])


if __name__ == "__main__": main()
