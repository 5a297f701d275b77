"Three steps, each an op; the first says when it began."
import os
import time

from dagster import Definitions, In, Nothing, job, op


@op
def first():
    with open(os.environ["STARTED"], "a") as f: f.write(f"{time.time()}\n")


@op(ins={"after": In(Nothing)})
def second(): pass


@op(ins={"after": In(Nothing)})
def third():
    with open(os.environ["ENDED"], "a") as f: f.write("1\n")


@job
def three_steps(): third(second(first()))


defs = Definitions(jobs=[three_steps])
