"Default pipeline: cold, up to date, resumed."
import subprocess
import time
from contextlib import suppress

import psutil
from common import (
    ENV,
    alternating,
    fewer_subscribers,
    fresh_copy,
    memory_of_children,
    quick,
    report,
    row,
    run,
    stage_seconds,
    workplace,
)

DUMMY = """stages:
  a: {cmd: echo a > a.txt, outs: [a.txt]}
  b: {cmd: cp a.txt b.txt, deps: [a.txt], outs: [b.txt]}
  c: {cmd: cp b.txt c.txt, deps: [b.txt], outs: [c.txt]}
"""


def project(place, small):
    place.mkdir()
    fresh_copy(place)
    if small: fewer_subscribers(place, 800)
    return place


def cold(place):
    "Seconds of simulation and pipeline, MiB, and the seconds of each stage."
    with memory_of_children() as peak:
        took = run("mlops-nb", "simulate", cwd=place) + run("dvc", "repro", cwd=place)
    return took, peak[0], stage_seconds(place)


def dummy(place):
    "Three stages that do nothing, for what DVC itself takes."
    place.mkdir()
    (place / "dvc.yaml").write_text(DUMMY)
    run("git", "init", "-q", cwd=place)
    run("dvc", "init", "-q", cwd=place)
    run("dvc", "repro", "-q", cwd=place)
    return place


def kill_at(place, stage):
    "Start the pipeline, and end all its processes while `stage` runs."
    pipeline = subprocess.Popen(["dvc", "repro"], cwd=place, env=ENV, stdout=subprocess.DEVNULL,
                                stderr=subprocess.DEVNULL)
    while pipeline.poll() is None:
        below = psutil.Process(pipeline.pid).children(recursive=True)
        for p in below:
            try: there = p.cmdline()[-2:] == ["stage", stage]
            except psutil.Error: continue
            if not there: continue
            time.sleep(0.2) # in the middle of it
            for q in [psutil.Process(pipeline.pid), *below]: # only processes that this benchmark started
                with suppress(psutil.NoSuchProcess): q.kill()
            return pipeline.wait()
        time.sleep(0.02)
    raise SystemExit(f"the pipeline ended with {pipeline.returncode} before the stage {stage} was seen")


def finished(place): return {p.name: p.stat().st_mtime_ns for p in (place / ".mlops" / "stages").glob("*.json")}


def interrupted(place):
    "Seconds of the run after the kill; the stages done before it, with their seconds; which of those ran again."
    run("mlops-nb", "simulate", cwd=place)
    kill_at(place, "evaluate")
    before, done = finished(place), stage_seconds(place)
    took = run("dvc", "repro", cwd=place)
    after = finished(place)
    return took, done, [n for n in before if after[n] != before[n]]


def main():
    small, times = quick(), 5
    with workplace() as tmp:
        first, three = project(tmp / "cold", small), dummy(tmp / "dummy")
        took, peak, stages = cold(first)
        nothing, plain = alternating(times, lambda: run("dvc", "repro", cwd=first),
                                     lambda: run("dvc", "repro", cwd=three))
        again, done, repeated = interrupted(project(tmp / "killed", small))
    each = ", ".join(f"{name} {s:.1f}" for name, s in stages.items())
    report([
        row("default pipeline from cold, reports included", f"{took:.1f} s", bound="≤ 120 s", met=took <= 120),
        row("… its peak memory, all processes together", f"{peak:,.0f} MiB", bound="≤ 1,536 MiB", met=peak <= 1536),
        row("`dvc repro` with nothing to do", f"{nothing:.2f} s", "`dvc repro` of 3 empty stages", f"{plain:.2f} s",
            f"{nothing / plain:.2f}×", "≤ 1.5 s", nothing <= 1.5),
        row("`dvc repro` after SIGKILL during `evaluate`",
            f"{again:.1f} s; {len(repeated)} of {len(done)} finished stages ran again",
            "from cold", f"{took:.1f} s", f"{sum(done.values()):.1f} s of stages saved", "0 stages again",
            not repeated),
    ], [
        "From cold: `mlops-nb simulate` and `dvc repro` in a fresh copy of this repository without data, caches or a "
        "tracking store; "
        f"the environment is installed. Seconds that the stages recorded of themselves: {each}; the rest of the "
        f"{took:.1f} s is the "
        "simulation, the start of each stage's process and DVC.",
        "Memory is the sum of the resident memory of all processes, sampled every 0.2 s; pages that two processes "
        "share count twice.",
        f"Nothing to do: median of {times}, in turns with the three empty stages. The pipeline has {len(stages)} "
        "stages.",
        "Killed: DVC and everything below it, in the middle of `evaluate`; finished then: "
        f"{', '.join(done)}."])


if __name__ == "__main__": main()
