"""First numbers from Python: one prompt by three methods, then a small run, its table and its page. Takes seconds on two cores.

python examples/first_numbers.py [FOLDER]
"""

import sys
from pathlib import Path

import specbench

PROMPT = "Emil has 15 stones. He buys 2 boxes of 4. He finds 4 more. He gives 2 to Konrad. How many stones does Emil have?"
METHODS = ["pld", "sps", "eagle2"]


def compare_answers() -> None:
    """Print what each method writes, and how many tokens a step commits; the text is always the target's own."""
    target = specbench.load_target("mini", dtype="float32")
    baseline = specbench.generate(target, PROMPT, max_new_tokens=48)
    print(baseline.text)
    for label in METHODS:
        answer = specbench.generate(specbench.load_method(label, target), PROMPT, max_new_tokens=48)
        same = answer.output_ids == baseline.output_ids
        print(f"{label:7} {answer.steps:3} steps, {answer.mean_accepted_tokens:.2f} tokens per step, same text: {same}")


def measure(folder: Path) -> None:
    """Make a run, print its table and what is not to be trusted in it, and render its page."""
    results = specbench.run(
        "engine.native.forward=eager",  # no minute for the compiler; leave this out for speeds that count
        method=METHODS,
        task=["qa", "math_reasoning"],
        limit=1,  # question per task: far too few for an interval
        repeats=1,
        sampling={"max_new_tokens": 48},
        check_baseline=False,
        out=folder / "run",
    )
    overall = results.summary[results.summary["task"] == "overall"]
    print(overall[["method", "speedup", "mean_accepted_tokens", "identical"]].to_string(index=False))
    print(*results.alarms, sep="\n")
    print(f"page: {specbench.render_report(results, out=folder / 'report').page}")


if __name__ == "__main__":
    compare_answers()
    measure(Path(sys.argv[1] if len(sys.argv) > 1 else "results/first-numbers"))
