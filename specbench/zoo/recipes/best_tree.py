"""Chooses a static tree: the nodes of a large tree that the target accepts most often on training questions.

    python -m specbench.zoo.recipes.best_tree METHOD [--large NAME] [--nodes N] [--limit QUESTIONS]

Prints YAML for conf/tree: the N best nodes besides the root, each with the share of steps in which it was accepted. A node is
accepted only with its parent, so the most frequent nodes form a tree.
"""

import argparse
from collections import Counter

import torch

from specbench.decoding.drafter import Drafter
from specbench.decoding.language_model import TargetOutput
from specbench.decoding.loop import generate
from specbench.decoding.sampling import Sampling
from specbench.decoding.tree import DraftTree, TreeShape
from specbench.decoding.verify import Verification
from specbench.setup.compose import compose_run
from specbench.setup.objects import instantiate_methods, load_target
from specbench.setup.questions import open_suite, select_questions

NEW_TOKENS = 256
TreePath = tuple[int, ...]


def count_accepted(drafter: Drafter) -> Counter[TreePath]:
    """Make the drafter count its accepted nodes by their paths of ranks; the empty path counts steps."""
    counts: Counter[TreePath] = Counter()
    observe = drafter.observe

    def observe_and_count(state: object, tree: DraftTree, out: TargetOutput, verified: Verification) -> None:
        counts[()] += 1
        if isinstance(tree.shape, TreeShape):
            counts.update(tree.shape.paths[node - 1] for node in verified.path[1:])
        observe(state, tree, out, verified)

    drafter.observe = observe_and_count  # type: ignore[method-assign]
    return counts


def measure_frequencies(label: str, large: str, limit: int) -> list[tuple[TreePath, float]]:
    """Return the large tree's paths, most accepted first, with their shares of all steps."""
    choice = [f"method=[{label}]", f"tree@method.{label}.tree={large}"]
    config = compose_run(["target=mini", "suite=mini_train", "target.dtype=float32", f"limit={limit}", *choice])
    target, drafter = load_target(config.target), instantiate_methods(config.method)[label]
    drafter.bind(target.model)
    counts = count_accepted(drafter)
    sampling = Sampling(max_new_tokens=NEW_TOKENS, stop_token_ids=target.model.eos_ids)
    for question in select_questions(config, open_suite(config), config.limit):
        prompt = torch.tensor(target.render_first_prompt(question), device=target.model.device)
        generate(target.model, drafter, [prompt], sampling)
    steps = counts.pop(())
    return [(path, count / steps) for path, count in sorted(counts.items(), key=lambda item: (-item[1], len(item[0]), item[0]))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("method")
    parser.add_argument("--large", default="recycling_2_2_2")
    parser.add_argument("--nodes", type=int, default=16)
    parser.add_argument("--limit", type=int, default=8)
    options = parser.parse_args()
    print("paths:")
    for path, share in measure_frequencies(options.method, options.large, options.limit)[: options.nodes]:
        print(f"  - {list(path)}  # {share:.3f}")


if __name__ == "__main__":
    main()
