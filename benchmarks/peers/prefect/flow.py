"Three steps, each a task; the first says when it began."
import os
import time

from prefect import flow, task


@task
def first():
    with open(os.environ["STARTED"], "a") as f: f.write(f"{time.time()}\n")


@task
def second(): pass


@task
def third():
    with open(os.environ["ENDED"], "a") as f: f.write("1\n")


@flow
def three_steps():
    first()
    second()
    third()


if __name__ == "__main__": three_steps.serve(name="bench")
